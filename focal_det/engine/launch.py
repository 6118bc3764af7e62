"""Start of a run: what is refused before it, and what the error of a process means."""

import argparse
import traceback
from pathlib import Path
from typing import Any, Optional

import torch
from detectron2.config import CfgNode
from detectron2.engine import launch
from torch import multiprocessing

from focal_det.checkpoint.last import find_last_checkpoint
from focal_det.checkpoint.weights_file import WeightsError
from focal_det.config import find_config_file
from focal_det.env import load_config
from focal_det.files import DiskFullError, is_disk_full

from .output_dir import (
    find_changes,
    read_earlier_config,
    refuse_changes,
    refuse_mixed_runs,
    remove_run,
)
from .processes import end_children_on_error
from .run import RunPlan, run_process
from .step_guard import DIVERGED, DivergedError

# Errors of a process that the user can act on; all others are crashes, with a traceback.
_KNOWN_ERRORS = (DivergedError, WeightsError, DiskFullError)


class StoppedError(RuntimeError):
    """A run that stopped before its end; the message is complete, a traceback included."""


def prepare_run(args: argparse.Namespace) -> RunPlan:
    """Refuse what can be refused before a process starts.

    Args:
        args: the flags of Detectron2's train_net.py, and overwrite, allow_changes, unsafe_yaml.

    Raises:
        OSError: the config does not exist.
        ValueError: names the flag, key or folder that must change.
    """
    _check_arguments(args)
    args.config_file = find_config_file(args.config_file)
    cfg = load_config(args.config_file, args.opts, unsafe_yaml=args.unsafe_yaml)
    folder = Path(cfg.OUTPUT_DIR)
    if args.eval_only:
        earlier = read_earlier_config(folder)
        weights = _find_evaluated_weights(cfg, args, earlier)
        if earlier and Path(weights).parent == folder:
            _warn_of_another_model(cfg, earlier)
        return RunPlan(cfg, earlier, weights=weights)
    if args.resume:
        earlier = read_earlier_config(folder)
        if not args.allow_changes:
            refuse_changes(cfg, earlier)
        if find_last_checkpoint(folder):
            cfg.MODEL.WEIGHTS = ""  # not read, and the file may be gone by now
        _note_another_length(cfg, earlier)
        return RunPlan(cfg, earlier)
    # On the other machines of a run, the folder may hold what the first one has just written.
    if args.machine_rank == 0 and not args.overwrite:
        refuse_mixed_runs(folder)
    return RunPlan(cfg)


def _check_arguments(args: argparse.Namespace) -> None:
    """Refuse flags that exclude each other, or that this machine cannot follow.

    Raises:
        ValueError: names the flag.
    """
    if not args.config_file:  # optional for Detectron2's parser
        raise ValueError("--config-file is required: the .yaml config of the run")
    if args.overwrite and (args.resume or args.eval_only):
        raise ValueError(
            "--overwrite starts a new run; it cannot be combined with --resume or --eval-only"
        )
    num_gpus = torch.cuda.device_count()
    if args.num_gpus > max(1, num_gpus):
        raise ValueError(f"--num-gpus {args.num_gpus}, but torch finds {num_gpus} on this machine")


def _find_evaluated_weights(cfg: CfgNode, args: argparse.Namespace, earlier: dict[str, Any]) -> str:
    """The weights that --eval-only evaluates.

    They are the last checkpoint of the run in OUTPUT_DIR. Without one, or if the config names other
    weights than those the run started from, they are MODEL.WEIGHTS.

    Raises:
        ValueError: there are none, and evaluating random weights is pointless; or the command line
            names the weights that the run started from, so that either could be meant.
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
    """Print a change of MAX_ITER, which a resume allows but may not intend."""
    before = earlier.get("SOLVER.MAX_ITER", cfg.SOLVER.MAX_ITER)
    if before != cfg.SOLVER.MAX_ITER:
        print(f"note: SOLVER.MAX_ITER: {before} before, {cfg.SOLVER.MAX_ITER} now")


def _warn_of_another_model(cfg: CfgNode, earlier: dict[str, Any]) -> None:
    """Print the model's settings that differ from those the evaluated run was trained with."""
    changes = find_changes(cfg, earlier)
    lines = [
        f"{key}: {old} in the run, {new} now"
        for key, (old, new) in changes.items()
        if key.startswith(("MODEL.", "INPUT.FORMAT")) and not key.startswith("MODEL.FOCAL_DET.")
    ]
    if lines:
        print("\n  ".join(["warning: the run had another model than this config", *lines]))


def launch_run(args: argparse.Namespace, plan: RunPlan) -> None:
    """Train or evaluate in as many processes as there are GPUs to use; wait for their end.

    Raises:
        ValueError: --overwrite would remove the weights that the run starts from.
        WeightsError: the weights cannot be read, or do not fit.
        StoppedError: the run stopped for any other reason.
    """
    if args.overwrite and args.machine_rank == 0:
        remove_run(Path(plan.cfg.OUTPUT_DIR), plan.cfg.MODEL.WEIGHTS)
    try:
        with end_children_on_error():
            launch(
                run_process,
                args.num_gpus,
                num_machines=args.num_machines,
                machine_rank=args.machine_rank,
                dist_url=args.dist_url,
                args=(args, plan),
            )
    except Exception as error:
        raise _explain(error) from None


def _explain(error: Exception) -> Exception:
    """The error to raise for one of a process: what a person can do about it, or a traceback."""
    kind, message = _find_known_error(error)
    if kind is WeightsError:
        return WeightsError(message)
    if kind is DivergedError:
        return StoppedError(f"{DIVERGED}{message}")
    if kind is DiskFullError:
        return StoppedError(f"focal-det train: {message}")
    # Often the user's own code, such as a loss or an evaluator: nothing of the traceback is hidden.
    lines = traceback.format_exception(type(error), error, error.__traceback__)
    return StoppedError("".join(lines).rstrip())


def _find_known_error(error: Exception) -> tuple[Optional[type[Exception]], str]:
    """Type and message of an error that a person can act on; None for others."""
    for kind in _KNOWN_ERRORS:
        if isinstance(error, kind):
            return kind, str(error)
        if isinstance(error, multiprocessing.ProcessRaisedException):
            # Only the text of the error crosses processes: a traceback, then type and message.
            _, is_kind, message = str(error).partition(f"{kind.__name__}: ")
            if is_kind:
                return kind, message.rstrip()
    if is_disk_full(error):
        message = f"the disk is full ({error}). Make room, then continue with --resume"
        return DiskFullError, message
    return None, ""
