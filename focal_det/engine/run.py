"""One process of a training run or of an evaluation."""

import argparse
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from focal_det.checkpoint.checkpointer import load_all_weights
from focal_det.checkpoint.last import find_last_checkpoint
from focal_det.data.catalog import register_datasets
from focal_det.env import load_config
from focal_det.files import open_to_replace, remove_parts
from focal_det.host import LOGGER_NAME, keep_log_files_plain

from .metrics_file import drop_later_metrics
from .step_guard import DivergedError
from .stop_request import STOP_REQUEST
from .trainer import Trainer


@dataclass
class RunPlan:
    """Inputs of a run, prepared before its processes start.

    Attributes:
        cfg: the config, for the checks; the processes read it again from its file.
        earlier: flattened config of the run in OUTPUT_DIR that is resumed or evaluated.
        weights: file or URL that --eval-only evaluates.
        findings: lines about the data and the config, to be logged.
    """

    cfg: CfgNode
    earlier: dict[str, Any] = field(default_factory=dict)
    weights: str = ""
    findings: Sequence[str] = ()


def run_process(args: argparse.Namespace, plan: RunPlan) -> Optional[dict]:
    """Train or evaluate in this process, with the others of the run, and return the metrics.

    Raises:
        DivergedError: the run stopped before a non-finite step, or its final model has diverged.
        WeightsError: the weights cannot be read, or do not fit.
        DiskFullError: a file of the run does not fit on the disk.
        DataWorkerError: a data worker has died.
        RunStopped: a signal asked for a stop, or another process cannot go on.
    """
    # Read again: a spawned process lacks the data sets and components that its parent registered.
    cfg = load_config(args.config_file, args.opts, unsafe_yaml=args.unsafe_yaml)
    register_datasets(cfg.MODEL.FOCAL_DET.DATASETS, source="MODEL.FOCAL_DET.DATASETS")
    seed_note = _set_seed(cfg, args, plan.earlier)
    if args.eval_only:
        cfg.MODEL.WEIGHTS = plan.weights
        cfg.freeze()
        with _keep_file(Path(cfg.OUTPUT_DIR) / "config.yaml"):
            _set_up(cfg, args)
        return _evaluate(cfg)
    cfg.freeze()
    _set_up(cfg, args)
    _log_notes(seed_note, plan.findings)
    return _train(cfg, args)


def _set_seed(cfg: CfgNode, args: argparse.Namespace, earlier: dict[str, Any]) -> str:
    """If SEED is not set, set one that all processes share; return a note for the log.

    A resumed or evaluated run keeps the seed it had.
    """
    if cfg.SEED >= 0:
        return ""
    # A collective operation: every process draws, even if it does not use the seed.
    drawn = comm.shared_random_seed()
    # -1 also for a run of Detectron2's own script, which does not record the seed that it draws.
    before = earlier.get("SEED", -1)
    if before >= 0:
        cfg.SEED = before
        return f"SEED is not set: this run keeps its first seed, {before}"
    if args.eval_only:
        return ""
    cfg.SEED = drawn
    if args.resume and earlier:
        return (
            "SEED is not set, and the earlier part of this run recorded none: it continues with "
            f"{drawn}, so the image order differs"
        )
    return f"SEED is not set: this run uses {drawn}, and --resume keeps it"


def _set_up(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Detectron2's set-up: logging, random generators, config.yaml."""
    keep_log_files_plain(cfg.OUTPUT_DIR)
    default_setup(cfg, args)


@contextmanager
def _keep_file(file: Path) -> Iterator[None]:
    """Restore a file that the block overwrites, such as the config of an evaluated run."""
    before = file.read_bytes() if file.is_file() else None
    try:
        yield
    finally:
        # default_setup writes in the main process only.
        if before is not None and comm.is_main_process():
            with open_to_replace(file) as stream:
                stream.write(before)


def _log_notes(seed_note: str, findings: Sequence[str]) -> None:
    """Log the seed, and the findings, which were printed before log.txt existed."""
    log = logging.getLogger(LOGGER_NAME)
    if seed_note:
        log.info(seed_note)
    for finding in findings:
        level = logging.INFO if finding.startswith("note") else logging.WARNING
        log.log(level, f"check: {finding}")


def _train(cfg: CfgNode, args: argparse.Namespace) -> Optional[dict]:
    with STOP_REQUEST.listening():
        if comm.is_main_process():
            _clean_up(Path(cfg.OUTPUT_DIR), args.resume)
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume, allow_changes=args.allow_changes)
        results = trainer.train()
    divergence = trainer.checkpointer.divergence
    if divergence:
        raise DivergedError(f"at the end of the run, {divergence}")
    return results


def _clean_up(folder: Path, resume: bool) -> None:
    """Remove half-written files, and the metrics of iterations that a resume repeats."""
    remove_parts(folder)
    if resume:
        last = find_last_checkpoint(folder)
        start_iter = last.iteration + 1 if last else 0
        # Before the trainer opens the file, to append to it.
        drop_later_metrics(folder / "metrics.json", start_iter)


def _evaluate(cfg: CfgNode) -> dict:
    logging.getLogger(LOGGER_NAME).info(f"evaluating {cfg.MODEL.WEIGHTS}")
    model = Trainer.build_model(cfg)
    load_all_weights(model, cfg.MODEL.WEIGHTS)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        # Ends the process with an error if the results differ from TEST.EXPECTED_RESULTS.
        verify_results(cfg, results)
    return results
