"""`--launcher slurm` of `focal-det train` and `focal-det sweep`; a training run as a job."""

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

from focal_det.engine.launch import check_arguments
from focal_det.env import load_config
from focal_det.slurm import TrainJob, submit_train

_FLAGS = ("--resume", "--overwrite", "--eval-only")


def add_launcher_arguments(parser: argparse.ArgumentParser, meaning: str) -> None:
    """Add `--launcher` and `--slurm`.

    Args:
        meaning: what becomes a job, for the help text.
    """
    parser.add_argument(
        "--launcher", choices=["local", "slurm"], default="local", help=f"slurm: {meaning}"
    )
    parser.add_argument(
        "--slurm",
        nargs="+",
        default=[],
        metavar="K=V",
        help="options of submitit, such as slurm_partition=gpu gpus_per_node=8 timeout_min=720",
    )


def return_opts(args: argparse.Namespace) -> None:
    """Move KEY VALUE pairs, which argparse took for more of `--slurm K=V ...`, to `opts`."""
    args.slurm, pairs = _split(args.slurm)
    args.opts = [*pairs, *args.opts]


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    parameters = list(itertools.takewhile(lambda x: "=" in x, words))
    return parameters, list(words[len(parameters) :])


def submit(args: argparse.Namespace) -> None:
    """Submit `focal-det train`, without `--launcher` and `--slurm`, as a job; print the job's id.

    Raises:
        ValueError: a flag or a key with which the job would fail.
    """
    check_arguments(args)
    if args.num_machines > 1:
        raise ValueError(
            f"--num-machines {args.num_machines}: with --launcher slurm, the machines of a run are "
            f"--slurm nodes={args.num_machines}"
        )
    cfg = load_config(args.config_file, args.opts, unsafe_yaml=args.unsafe_yaml)
    folder = Path(cfg.OUTPUT_DIR, "slurm")
    job_id, log = submit_train(_make_job(args.words), folder, args.slurm)
    print(f"submitted job {job_id}; log: {log}")


def _make_job(words: Sequence[str]) -> TrainJob:
    """The job of a command, without the arguments of this file."""
    # By argparse, because it also knows abbreviations and --launcher=slurm.
    parser = argparse.ArgumentParser(add_help=False)
    add_launcher_arguments(parser, "")
    for flag in _FLAGS:
        parser.add_argument(flag, action="store_true")
    mine, others = parser.parse_known_args(words)
    flags = [x for x in _FLAGS if getattr(mine, x[2:].replace("-", "_"))]
    return TrainJob((*others, *_split(mine.slurm)[1]), tuple(flags))
