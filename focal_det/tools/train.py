"""Train and evaluate: the flags of Detectron2's tools/train_net.py, for installs that do not have that file."""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm
from torch import multiprocessing

from focal_det.check.run import run_checks
from focal_det.checkpoint.checkpointer import load_all_weights
from focal_det.checkpoint.last import find_last_checkpoint
from focal_det.checkpoint.weights_file import WeightsError
from focal_det.config import find_config_file
from focal_det.data.catalog import register_datasets
from focal_det.engine.output_dir import (
    find_all_run_files,
    find_changes,
    find_run_files,
    read_earlier_config,
)
from focal_det.engine.processes import end_children_on_error, end_with_parent
from focal_det.engine.step_guard import DIVERGED, DivergedError
from focal_det.engine.trainer import Trainer
from focal_det.env import load_config
from focal_det.files import DiskFullError, is_disk_full, open_to_replace
from focal_det.host import LOGGER_NAME, keep_log_files_plain
from focal_det.messages import describe_error, shorten
from focal_det.tools.check import print_findings

_CHECKED_IMAGES = 200  # of each data set, before a training


def run(args: argparse.Namespace) -> Optional[dict]:
    """One process of a training run or an evaluation; returns the metrics.

    Args:
        args: of the command line, and what `main` has added: `earlier`, the config of the run that
            OUTPUT_DIR holds, by full keys; `weights`, what is evaluated; `findings` of the checks.
    """
    end_with_parent()
    cfg = load_config(args.config_file, args.opts, unsafe_yaml=args.unsafe_yaml)
    register_datasets(cfg.MODEL.FOCAL_DET.DATASETS, source="MODEL.FOCAL_DET.DATASETS")
    seed_note = _set_seed(cfg, args)
    if args.eval_only:
        cfg.MODEL.WEIGHTS = args.weights
    cfg.freeze()
    _set_up(cfg, args)
    log = logging.getLogger(LOGGER_NAME)
    if args.eval_only:
        return _evaluate(cfg)
    if seed_note:
        log.info(seed_note)
    for finding in args.findings:
        # Once more, where log.txt and the eye have them at the end of the settings.
        level = logging.INFO if finding.startswith("note") else logging.WARNING
        log.log(level, f"check: {finding}")
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume, take_new_settings=args.allow_changes)
    results = trainer.train()
    if trainer.checkpointer.divergence:
        raise DivergedError(
            f"the model has diverged at the end of the run: {trainer.checkpointer.divergence}"
        )
    return results


def _set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Detectron2's set-up; an evaluation leaves the config.yaml of the run as it was."""
    file = Path(cfg.OUTPUT_DIR) / "config.yaml"
    before = file.read_bytes() if args.eval_only and file.is_file() else None
    try:
        keep_log_files_plain(cfg.OUTPUT_DIR)
        default_setup(cfg, args)
    finally:
        if before is not None and comm.is_main_process():
            with open_to_replace(file) as stream:
                stream.write(before)


def _evaluate(cfg: CfgNode) -> dict:
    logging.getLogger(LOGGER_NAME).info(f"evaluating {cfg.MODEL.WEIGHTS}")
    model = Trainer.build_model(cfg)
    load_all_weights(model, cfg.MODEL.WEIGHTS)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def _set_seed(cfg: CfgNode, args: argparse.Namespace) -> str:
    """Give a run without SEED one that is the same in all its processes; return what to report.

    A resumed or evaluated run keeps the one it had.
    """
    if cfg.SEED >= 0:
        return ""
    # Drawn by all processes, as they wait for each other there.
    drawn = comm.shared_random_seed()
    before = args.earlier.get("SEED", -1)
    if before >= 0:
        cfg.SEED = before
        return f"SEED is not set; this run keeps {before}, which it was started with"
    if args.eval_only:
        return ""
    cfg.SEED = drawn
    if args.resume and args.earlier:
        return (
            f"SEED is not set, and the earlier part of this run has not recorded one; it goes on "
            f"with {drawn}, in another order of the images"
        )
    return f"SEED was not set; this run has {drawn}, and --resume keeps it"


def _check(cfg: CfgNode, resume: bool) -> list[str]:
    """Refuse to start what would stop or go wrong later, see `focal-det check`; return what else there is to say."""
    if resume and find_last_checkpoint(Path(cfg.OUTPUT_DIR)):
        cfg = cfg.clone()
        cfg.MODEL.WEIGHTS = ""  # not read
    findings, _ = run_checks(cfg, images=_CHECKED_IMAGES, is_training=True)
    print_findings(findings)
    if findings.get("error"):
        print(
            "There are errors above, and nothing was trained. To train all the same: --no-check",
            file=sys.stderr,
        )
        raise SystemExit(2)
    return [f"{x.severity}: {x}" for x in findings]


def _check_output_dir(cfg: CfgNode, args: argparse.Namespace) -> dict[str, Any]:
    """Refuse what would mix two runs; return the config of the run in OUTPUT_DIR if it goes on.

    Raises:
        ValueError: a used folder without --resume or --overwrite, or a resume with other settings.
        WeightsError: a last checkpoint that cannot be read.
    """
    folder = Path(cfg.OUTPUT_DIR)
    if args.resume or args.eval_only:
        before = read_earlier_config(folder)
        changes = find_changes(cfg, before) if args.resume and not args.eval_only else {}
        if changes and not args.allow_changes:
            shown = "".join(
                f"\n  {k}: {old} before, {new} now" for k, (old, new) in changes.items()
            )
            raise ValueError(
                f"--resume: the run in {folder} was trained with other settings:{shown}\nSet them "
                "back, or go on with the new ones: --allow-changes"
            )
        return before
    files = find_run_files(folder)
    if files and args.machine_rank == 0 and not args.overwrite:
        raise ValueError(
            f"OUTPUT_DIR {folder} holds a run ({shorten(files, 4)}). Go on with it: --resume. "
            "Remove it and start anew: --overwrite. Or choose another OUTPUT_DIR"
        )
    return {}


def _find_evaluated(cfg: CfgNode, args: argparse.Namespace) -> str:
    """The weights that --eval-only evaluates.

    They are the last checkpoint of the run in OUTPUT_DIR; without one, or if the config names other
    weights than that run has started from, they are MODEL.WEIGHTS.

    Raises:
        ValueError: there are none, as a model with random weights is not worth evaluating; or the
            command line names the weights that the run has started from, so that either may be meant.
    """
    weights = cfg.MODEL.WEIGHTS
    checkpoint = find_last_checkpoint(Path(cfg.OUTPUT_DIR))
    if checkpoint and (args.resume or not weights):
        return str(checkpoint)
    if checkpoint and weights == args.earlier.get("MODEL.WEIGHTS", ""):
        if "MODEL.WEIGHTS" not in args.opts[0::2]:
            return str(checkpoint)
        raise ValueError(
            f"--eval-only: MODEL.WEIGHTS {weights} is what the run in {cfg.OUTPUT_DIR} has started "
            f"from. Leave it out to evaluate that run ({checkpoint.name}), or choose another OUTPUT_DIR"
        )
    if weights and not args.resume:
        return weights
    raise ValueError(
        f"--eval-only: there is nothing to evaluate. OUTPUT_DIR {cfg.OUTPUT_DIR} has no checkpoint"
        f"{'' if args.resume else ', and MODEL.WEIGHTS is empty'}. Name a file: MODEL.WEIGHTS FILE"
    )


def _warn_of_another_model(cfg: CfgNode, earlier: dict[str, Any]) -> None:
    """Say which settings of the model are not those that the evaluated run was trained with."""
    changes = find_changes(cfg, earlier)
    shown = [
        f"{key}: {old} in the run, {new} now"
        for key, (old, new) in changes.items()
        if key.startswith(("MODEL.", "INPUT.FORMAT")) and not key.startswith("MODEL.FOCAL_DET.")
    ]
    if shown:
        print("\n  ".join(["warning: the run had another model than this config", *shown]))


def _make_parser() -> argparse.ArgumentParser:
    parser = default_argument_parser(
        epilog="Keys of focal_det: MODEL.FOCAL_DET; see focal_det/config.py."
    )
    parser.prog = "focal-det train"
    parser.add_argument(
        "--no-check",
        action="store_true",
        help="start without checking config, annotations and "
        f"{_CHECKED_IMAGES} images of each data set as `focal-det check` does",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="remove the run that OUTPUT_DIR holds, and start anew",
    )
    parser.add_argument(
        "--allow-changes",
        action="store_true",
        help="let --resume go on with other settings than the run was started with",
    )
    parser.add_argument(
        "--unsafe-yaml",
        action="store_true",
        help="let the config run code (!!python/...) when it is read",
    )
    return parser


def _check_arguments(args: argparse.Namespace) -> None:
    """Refuse flags that do not go together, or that this machine cannot follow.

    Raises:
        ValueError: names the flag.
    """
    if not args.config_file:  # the stock parser lets it be left out
        raise ValueError("--config-file is required: the .yaml config of the run")
    if not args.config_file.endswith((".yaml", ".yml")):
        raise ValueError(
            f"--config-file must be a .yaml file, got {args.config_file!r}; Lazy .py configs run under Detectron2's "
            "tools/lazyconfig_train_net.py"
        )
    if args.overwrite and (args.resume or args.eval_only):
        raise ValueError(
            "--overwrite starts a new run; it does not go with --resume or --eval-only"
        )
    num_gpus = torch.cuda.device_count()
    if args.num_gpus > max(1, num_gpus):
        raise ValueError(f"--num-gpus {args.num_gpus}, but torch finds {num_gpus} on this machine")


def _prepare(args: argparse.Namespace) -> None:
    """All that can be refused before a process starts; adds `earlier`, `weights` and `findings`."""
    _check_arguments(args)
    args.config_file = find_config_file(args.config_file)
    cfg = load_config(args.config_file, args.opts, unsafe_yaml=args.unsafe_yaml)
    args.earlier = _check_output_dir(cfg, args)
    args.weights = _find_evaluated(cfg, args) if args.eval_only else ""
    if args.eval_only and args.earlier and Path(args.weights).parent == Path(cfg.OUTPUT_DIR):
        _warn_of_another_model(cfg, args.earlier)
    args.findings = [] if args.eval_only or args.no_check else _check(cfg, args.resume)
    if args.overwrite and args.machine_rank == 0:
        _remove_run(cfg)


def _remove_run(cfg: CfgNode) -> None:
    """Remove the run in OUTPUT_DIR, if it holds one.

    Raises:
        ValueError: MODEL.WEIGHTS is one of its files.
    """
    folder = Path(cfg.OUTPUT_DIR)
    files = find_all_run_files(folder) if find_run_files(folder) else []
    if Path(cfg.MODEL.WEIGHTS).resolve() in {x.resolve() for x in files}:
        raise ValueError(
            f"--overwrite would remove MODEL.WEIGHTS {cfg.MODEL.WEIGHTS}; choose another OUTPUT_DIR"
        )
    for file in files:
        file.unlink()


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Entry point; see `--help`."""
    parser = _make_parser()
    args = parser.parse_args(argv)
    try:
        _prepare(args)
    except (OSError, KeyError, ValueError, AssertionError) as error:
        parser.error(describe_error(error))
    machines = {
        "num_machines": args.num_machines,
        "machine_rank": args.machine_rank,
        "dist_url": args.dist_url,
    }
    try:
        with end_children_on_error():
            launch(run, args.num_gpus, **machines, args=(args,))
    except (DivergedError, WeightsError, OSError, multiprocessing.ProcessRaisedException) as error:
        kind, message = _find_stop(error)
        if kind is None:
            raise
        if kind is WeightsError:
            parser.error(message)
        prefix = DIVERGED if kind is DivergedError else "focal-det train: "
        raise SystemExit(f"{prefix}{message}") from None


def _find_stop(error: Exception) -> tuple[Optional[type[Exception]], str]:
    """Kind and message of an exception that a person can do something about; None for others.

    One of several processes hands it on as text, the traceback with the message at its end.
    """
    for kind in (DivergedError, WeightsError, DiskFullError):
        if isinstance(error, kind):
            return kind, str(error)
        _, is_kind, message = str(error).partition(f"{kind.__name__}: ")
        if is_kind:
            return kind, message.rstrip()
    if is_disk_full(error):
        return DiskFullError, f"the disk is full ({error}). Make room, then go on with --resume"
    return None, ""


if __name__ == "__main__":
    sys.exit(main())
