"""The start of a run: the checks that may refuse it, and how its errors are explained."""

import argparse
import contextlib
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode

from focal_det.checkpoint.last import find_last_checkpoint
from focal_det.checkpoint.weights_file import WeightsError
from focal_det.config import find_config_file
from focal_det.env import load_config
from focal_det.files import DiskFullError, is_disk_full

from .data_workers import DataWorkerError, end_when_parent_dies
from .output_dir import (
    find_changes,
    lock_output_dir,
    read_earlier_config,
    refuse_changes,
    refuse_mixed_runs,
    remove_run,
)
from .processes import (
    Place,
    ProcessKilledError,
    joined,
    plan_places,
    read_place,
    run_in_processes,
    share_from_first,
)
from .run import RunPlan, run_process
from .step_guard import DIVERGED, DivergedError

# A network file system may hold the lock of a failed machine for a while.
_SECONDS_OF_A_LOCK = 180.0


class StoppedError(RuntimeError):
    """A run that stopped before its end; the message needs no traceback, or contains it."""


def start_run(args: argparse.Namespace, check: Callable[[RunPlan], None]) -> None:
    """Check everything that can be refused; then train or evaluate until the end.

    Starts the processes of the run, unless torchrun or a similar launcher has started them: then
    this process joins the others.

    Args:
        args: the flags of Detectron2's train_net.py, and num_processes, overwrite, allow_changes,
            no_check, unsafe_yaml.
        check: examines a run before it starts, and raises SystemExit to refuse it.

    Raises:
        OSError: the config does not exist, or another run uses OUTPUT_DIR.
        ValueError: names the flag, key or folder that must change.
        WeightsError: the weights cannot be read, or do not fit.
        StoppedError: the run stopped for any other reason.
        SystemExit: `check` has refused the run, or a signal has stopped it.
    """
    args.allow_changes = [x for x in args.allow_changes.split(",") if x]
    args.num_processes = _count_processes(args)
    place = read_place()
    if place is None:
        _prepare_and_run(args, check, has_launcher=False)
        return
    args.num_processes = place.num_processes
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_when_parent_dies()
    with joined(place, _guess_gpus(args)) as is_restart:
        # torchrun repeats the original command, which may lack --resume.
        if is_restart and not args.eval_only:
            args.resume = True
            args.overwrite = False
        _prepare_and_run(args, check, has_launcher=True)


def _guess_gpus(args: argparse.Namespace) -> bool:
    """Whether the run uses GPUs; False for a config that the first process will refuse."""
    try:
        cfg = load_config(args.config_file, args.opts, unsafe_yaml=args.unsafe_yaml)
    except (OSError, ValueError):
        return False
    return _uses_gpus(args, cfg)


def _uses_gpus(args: argparse.Namespace, cfg: CfgNode) -> bool:
    return args.num_gpus > 0 and not cfg.MODEL.DEVICE.startswith("cpu")


def _prepare_and_run(
    args: argparse.Namespace, check: Callable[[RunPlan], None], *, has_launcher: bool
) -> None:
    with contextlib.ExitStack() as lock:
        plan = share_from_first(lambda: _prepare(args, check, lock))
        # Detectron2 opens this file to log its text, so the name of a shipped config will not do.
        args.config_file = find_config_file(args.config_file)
        _run(args, plan, has_launcher=has_launcher)


def _count_processes(args: argparse.Namespace) -> int:
    """Number of processes on all machines.

    Raises:
        ValueError: the flags contradict each other, or ask for more GPUs than this machine has.
    """
    num_gpus = torch.cuda.device_count()
    if args.num_gpus > max(1, num_gpus):
        raise ValueError(f"--num-gpus {args.num_gpus}, but torch finds {num_gpus} on this machine")
    by_gpus = max(1, args.num_gpus)
    num_local = args.num_processes or by_gpus
    if num_local < 1:
        raise ValueError(f"--num-processes must be >= 1, got {num_local}")
    if num_local != by_gpus and args.num_gpus > 0:
        raise ValueError(
            f"--num-processes {num_local}: with GPUs, there is one process for each "
            f"(--num-gpus {args.num_gpus}); for processes on the CPU, add --num-gpus 0"
        )
    return num_local * args.num_machines


def _prepare(
    args: argparse.Namespace, check: Callable[[RunPlan], None], lock: contextlib.ExitStack
) -> RunPlan:
    """Check everything that can be refused before the first iteration.

    Args:
        lock: stack that takes over the lock of OUTPUT_DIR; closing the stack releases it.
    """
    check_arguments(args)
    cfg = load_config(args.config_file, args.opts, unsafe_yaml=args.unsafe_yaml)
    folder = Path(cfg.OUTPUT_DIR)
    if args.eval_only:
        earlier = read_earlier_config(folder)
        weights = _find_evaluated_weights(cfg, args, earlier)
        if earlier and Path(weights).parent == folder:
            _warn_of_another_model(cfg, earlier)
        return RunPlan(cfg, earlier, weights=weights)
    # Only on the first machine: the others may find files in the folder that the first has just
    # written.
    if args.machine_rank == 0:
        lock.enter_context(lock_output_dir(folder, _get_lock_patience(args)))
    plan = RunPlan(cfg)
    if args.resume:
        plan.earlier = _prepare_resume(cfg, args)
    elif args.machine_rank == 0 and not args.overwrite:
        refuse_mixed_runs(folder)
    if not args.no_check:
        check(plan)
    # Last, because anything above may still refuse the run.
    if args.overwrite and args.machine_rank == 0:
        remove_run(folder, cfg.MODEL.WEIGHTS)
    return plan


def _get_lock_patience(args: argparse.Namespace) -> float:
    """Seconds to wait for the lock of OUTPUT_DIR; 0 except in a requeued job that resumes."""
    is_requeued = int(os.environ.get("SLURM_RESTART_COUNT", 0)) > 0
    return _SECONDS_OF_A_LOCK if is_requeued and args.resume else 0.0


def _prepare_resume(cfg: CfgNode, args: argparse.Namespace) -> dict[str, Any]:
    """Refuse a resume that would not continue the same run; returns the earlier config.

    Raises:
        ValueError: settings or the number of processes have changed, and that is not allowed.
    """
    folder = Path(cfg.OUTPUT_DIR)
    earlier = read_earlier_config(folder)
    refuse_changes(cfg, earlier, args.allow_changes)
    last = find_last_checkpoint(folder)
    if last:
        cfg.MODEL.WEIGHTS = ""  # not read at a resume, and it may be gone by now
        before = last.num_processes or args.num_processes
        if before != args.num_processes and "processes" not in args.allow_changes:
            raise ValueError(
                f"--resume: the run in {folder} had {before} processes, and would have "
                f"{args.num_processes} now: its data cannot go on in the same order. To continue "
                "in another order: --allow-changes processes"
            )
    _note_another_length(cfg, earlier)
    return earlier


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse flags that exclude each other, or a missing --config-file.

    Raises:
        ValueError: names the flag.
    """
    if not args.config_file:  # optional for Detectron2's parser
        raise ValueError("--config-file is required: the .yaml config of the run")
    if args.overwrite and (args.resume or args.eval_only):
        raise ValueError(
            "--overwrite starts a new run; it cannot be combined with --resume or --eval-only"
        )


def _find_evaluated_weights(cfg: CfgNode, args: argparse.Namespace, earlier: dict[str, Any]) -> str:
    """The weights that --eval-only evaluates.

    They are the last checkpoint of the run in OUTPUT_DIR. Without --resume, they are MODEL.WEIGHTS
    instead if there is no checkpoint, or if MODEL.WEIGHTS is set to other weights than those that
    the run started from.

    Raises:
        ValueError: there are none, and evaluating random weights is pointless; or the command line
            names the weights that the run started from, and may mean these or the checkpoint.
    """
    weights = cfg.MODEL.WEIGHTS
    last = find_last_checkpoint(Path(cfg.OUTPUT_DIR))
    checkpoint = last.file if last else None
    if checkpoint and (args.resume or not weights):
        return str(checkpoint)
    if checkpoint and weights == earlier.get("MODEL.WEIGHTS", ""):
        if "MODEL.WEIGHTS" not in args.opts[0::2]:
            return str(checkpoint)
        raise ValueError(
            f"--eval-only: the run in {cfg.OUTPUT_DIR} started from MODEL.WEIGHTS {weights}. Leave "
            f"it out to evaluate that run ({checkpoint.name}), or choose another OUTPUT_DIR"
        )
    if weights and not args.resume:
        return weights
    reason = f"OUTPUT_DIR {cfg.OUTPUT_DIR} has no checkpoint"
    if not args.resume:
        reason += ", and MODEL.WEIGHTS is empty"
    raise ValueError(
        f"--eval-only: there is nothing to evaluate. {reason}. Name a file: MODEL.WEIGHTS FILE"
    )


def _note_another_length(cfg: CfgNode, earlier: dict[str, Any]) -> None:
    """Print a change of MAX_ITER: a resume allows it, but it may be a mistake."""
    before = earlier.get("SOLVER.MAX_ITER", cfg.SOLVER.MAX_ITER)
    if before != cfg.SOLVER.MAX_ITER:
        print(f"note: SOLVER.MAX_ITER: {before} before, {cfg.SOLVER.MAX_ITER} now")


def _warn_of_another_model(cfg: CfgNode, earlier: dict[str, Any]) -> None:
    """Print the settings of the model that differ from those of the evaluated run."""
    changes = find_changes(cfg, earlier)
    lines = [
        f"{key}: {old} in the run, {new} now"
        for key, (old, new) in changes.items()
        if key.startswith(("MODEL.", "INPUT.FORMAT")) and not key.startswith("MODEL.FOCAL_DET.")
    ]
    if lines:
        print("\n  ".join(["warning: this config has another model than the run", *lines]))


def _run(args: argparse.Namespace, plan: RunPlan, *, has_launcher: bool) -> None:
    """Run in this process, or in as many new ones as the flags ask for."""
    if has_launcher or args.num_processes == 1:
        _run_process(args, plan)
        return
    places = plan_places(
        args.num_processes // args.num_machines,
        args.num_machines,
        args.machine_rank,
        args.dist_url,
    )
    try:
        run_in_processes(_join_and_run, [(place, args, plan) for place in places])
    except ProcessKilledError as error:
        raise StoppedError(f"focal-det train: {error}") from None


def _join_and_run(place: Place, args: argparse.Namespace, plan: RunPlan) -> None:
    with joined(place, _uses_gpus(args, plan.cfg)):
        _run_process(args, plan)


def _run_process(args: argparse.Namespace, plan: RunPlan) -> None:
    try:
        run_process(args, plan)
    except Exception as error:
        raise _explain(error) from None


def _explain(error: Exception) -> Exception:
    """The error to raise in place of one that ended a run: with advice, or its traceback."""
    if isinstance(error, WeightsError):
        return error
    if isinstance(error, DivergedError):
        return StoppedError(f"{DIVERGED}{error}")
    if isinstance(error, DataWorkerError):
        return StoppedError(
            f"focal-det train: {error}. The last complete step is saved; continue with --resume"
        )
    if isinstance(error, DiskFullError):
        return StoppedError(f"focal-det train: {error}")
    if is_disk_full(error):
        return StoppedError(
            f"focal-det train: the disk is full ({error}). Make room, then continue with --resume"
        )
    # Often from the user's own code, such as a loss or an evaluator, so the traceback is kept.
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    return StoppedError("".join(lines).rstrip())
