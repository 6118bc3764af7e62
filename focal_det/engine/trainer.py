"""The trainer of `focal-det train`, built from the parts of this package."""

import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Optional

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, HookBase, TrainerBase
from detectron2.engine.hooks import EvalHook, PeriodicCheckpointer, PeriodicWriter, PreciseBN
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from torch import nn

import focal_det
from focal_det.checkpoint.checkpointer import HealthyCheckpointer
from focal_det.checkpoint.weights_file import WeightsError
from focal_det.data.evaluation import build_evaluator
from focal_det.host import LOGGER_NAME, parallelize_on_cpu
from focal_det.messages import shorten

from .full_disk import report_full_disk_once
from .precise_bn import ResumablePreciseBN
from .processes import agree_on
from .run_state import kept_generators, restore_run_state
from .saver import RunSaver
from .step_guard import DivergedError, StepGuard
from .stop_request import STOP_REQUEST, RunStopped
from .training_stream import TrainingStream, build_train_stream

_FAILED = 255  # status of a process that cannot go on; above any signal's


class Trainer(DefaultTrainer):
    """Detectron2's DefaultTrainer, with

    - a StepGuard, so that nothing non-finite reaches the weights,
    - a HealthyCheckpointer; checkpoints hold the optimizer's state on Detectron2 0.5 and 0.6, too,
    - a stop between two steps when a signal asks for it or an image cannot be loaded, with a
      checkpoint of the last complete step,
    - box evaluators chosen by a data set's `evaluator_type`, never with a cache of old annotations,
    - errors about an image that name its file,
    - resumed runs that, on a CPU, equal the uninterrupted run bit for bit; those of Detectron2
      start over at the first batch.

    A run must be resumed with the `cfg.SEED` it was started with.
    """

    # Detectron2 sets these attributes, without annotations.
    checkpointer: HealthyCheckpointer
    _hooks: list[HookBase]

    _allowed: Sequence[str] = ()

    def __init__(self, cfg: CfgNode) -> None:
        # Detectron2 may scale batch size and learning rate to the number of processes. A checkpoint
        # keeps the config as given: a resume compares it with the new one before any scaling.
        self._given_config = cfg.dump()
        with parallelize_on_cpu(cfg.MODEL.DEVICE):
            super().__init__(cfg)

    def build_hooks(self) -> list[HookBase]:
        checkpointables = self.checkpointer.checkpointables
        self.checkpointer = HealthyCheckpointer(self.model, self.cfg.OUTPUT_DIR, **checkpointables)
        self._guard = StepGuard(self.cfg)
        self.checkpointer.find_divergence = self._guard.find_divergence
        self.checkpointer.extra = {
            "config": self._given_config,
            "versions": _get_versions(),
            **_get_class_names(self.cfg),
        }

        stream: TrainingStream = self._trainer.data_loader
        # What a resumed run needs of this process.
        self._parts: dict[str, Any] = {"data": stream, "guard": self._guard.progress}
        self._saver = RunSaver(self.cfg, self.checkpointer, self._parts)
        stream.before_batch = partial(self._stop_if_asked, self._saver.save_last_step)
        hooks = [self._make_resumable(x) for x in super().build_hooks() if x is not None]
        return [self._guard, *_replace_checkpointer(hooks, self._saver)]

    def _make_resumable(self, hook: HookBase) -> HookBase:
        if not isinstance(hook, PreciseBN) or hook._disabled:
            return hook
        precise_bn = ResumablePreciseBN(hook)
        self._parts["precise_bn"] = precise_bn

        def save() -> None:
            precise_bn.undo()
            self._saver.save_this_step()

        precise_bn.stream.before_batch = partial(self._stop_if_asked, save)
        return precise_bn

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        if "_trainer" not in state:
            # As Detectron2 main does it; 0.5 and 0.6 lose the momentum, as they save no optimizer.
            state["_trainer"] = self._trainer.state_dict()
        return state

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        has_optimizer = "_trainer" in state_dict
        if not (has_optimizer or "optimizer" in self._allowed):
            raise WeightsError(
                "it contains no state of the optimizer (train_net.py of Detectron2 0.5 and 0.6 "
                "saves none), so momentum would start at 0. To continue nevertheless: "
                "--allow-changes optimizer"
            )
        TrainerBase.load_state_dict(self, state_dict)
        if has_optimizer:
            self._trainer.load_state_dict(state_dict["_trainer"])

    def train(self) -> Any:
        try:
            with report_full_disk_once(Path(self.cfg.OUTPUT_DIR)):
                return super().train()
        except RunStopped:
            self._saver.save_interrupted_evaluation()
            raise
        except Exception:
            self._saver.save_interrupted_evaluation()
            # A signal has stopped the first process in an evaluation, and this one waited for it.
            if STOP_REQUEST.number and not comm.is_main_process():
                STOP_REQUEST.stop()
            raise

    def run_step(self) -> None:
        try:
            super().run_step()
        except DivergedError:
            raise
        except FloatingPointError as error:
            # Detectron2 itself checks proposals and the losses of all processes, but keeps nothing
            # of the step.
            self._guard.stop_for(error)

    def _stop_if_asked(self, save: Callable[[], None], error: Optional[Exception]) -> None:
        """If any process has to stop, stop all of them before this batch, with a checkpoint.

        Args:
            save: saves the state after the last complete step; called in all processes.
            error: why this process has no batch, or None; the caller raises it.

        Raises:
            RunStopped: a signal asked for a stop, or another process has no batch.
        """
        status = agree_on(_FAILED if error else STOP_REQUEST.number)
        if not status:
            return
        save()
        if error:
            return
        if status == _FAILED:
            raise RunStopped(1)
        STOP_REQUEST.number = status
        STOP_REQUEST.stop()

    def after_train(self) -> None:
        # After an exception in the last iteration, Detectron2 evaluates as if the run were
        # complete. It is complete only if `iter` has moved and has reached `max_iter`.
        if self.iter < self.max_iter or self.iter == self.start_iter:
            self._hooks = [x for x in self._hooks if not isinstance(x, EvalHook)]
        try:
            super().after_train()
        except RunStopped:  # in the evaluation, before the hook that writes the last metrics
            for hook in self._hooks:
                if isinstance(hook, PeriodicWriter):
                    hook.after_train()
            raise

    def resume_or_load(self, resume: bool = True, allow_changes: Sequence[str] = ()) -> None:
        """Load the last checkpoint or MODEL.WEIGHTS, and move to the data that follows.

        Args:
            resume: load the last checkpoint of OUTPUT_DIR if it has one.
            allow_changes: what may have changed since a resumed run started: keys of the config,
                "classes", "optimizer" (whose state may be missing). With a key of SOLVER, learning
                rate, momentum and weight decay come from the config, else from the checkpoint.

        Raises:
            WeightsError: the weights cannot be read or do not fit, or the classes have changed.
        """
        self._allowed = allow_changes
        settings = [_get_settings(x) for x in self.optimizer.param_groups]
        super().resume_or_load(resume=resume)
        self._check_same_start()
        if not resume or self.start_iter == 0:
            return
        if any(x.startswith("SOLVER") for x in allow_changes):
            self._set_settings(settings)
        if "classes" not in allow_changes:
            self._check_class_names()
        self._continue_exactly()
        if self.start_iter >= self.max_iter:
            logging.getLogger(LOGGER_NAME).info(
                f"all {self.start_iter} iterations of this run are done, and nothing is left to "
                "train; its model is evaluated again. To train longer, raise SOLVER.MAX_ITER"
            )

    def _check_same_start(self) -> None:
        starts = comm.all_gather(self.start_iter)
        if len(set(starts)) > 1:
            raise WeightsError(
                f"the processes of this run would start at iterations {shorten(starts)}: "
                f"OUTPUT_DIR {self.cfg.OUTPUT_DIR} must be one folder that all machines share"
            )

    def _continue_exactly(self) -> None:
        """Restore this process as it was at the checkpoint, or else only its place in the data."""
        log = logging.getLogger(LOGGER_NAME)
        run_state = self.checkpointer.loaded.get("run_state", {})
        if run_state.get("num_processes") == comm.get_world_size():
            restore_run_state(run_state, self._parts, self.checkpointer.model)
            before = self.checkpointer.loaded.get("versions", {})
            changes = [f"{k} {v} before" for k, v in before.items() if v != _get_versions().get(k)]
            log.info(
                f"continuing exactly after iteration {self.start_iter - 1}"
                + (f", except for rounding: {', '.join(changes)}" if changes else "")
            )
            return
        # A checkpoint of Detectron2, of an older version, or of another number of processes.
        num_images = self.start_iter * self.cfg.SOLVER.IMS_PER_BATCH
        self._parts["data"].load_state_dict(
            {"next": num_images // comm.get_world_size(), "waiting": []}
        )
        log.warning(
            f"the checkpoint has no state of {comm.get_world_size()} processes: continuing with "
            f"the data after {num_images} images, and with new random numbers"
        )

    def _check_class_names(self) -> None:
        before = self.checkpointer.loaded.get("class_names", [])
        now = self.checkpointer.extra.get("class_names", before)
        if before and before != now:
            raise WeightsError(
                f"checkpoint {self.checkpointer.get_checkpoint_file()}: it was trained with the "
                f"classes {shorten(before)}, in this order; the training set has {shorten(now)}"
            )

    def _set_settings(self, settings: list[dict[str, Any]]) -> None:
        for group, values in zip(self.optimizer.param_groups, settings):
            group.update(values)
        # The scheduler multiplies its own copy of the learning rates.
        self.scheduler.base_lrs = [x["initial_lr"] for x in self.optimizer.param_groups]
        for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_lr()):
            group["lr"] = lr

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainingStream:
        return build_train_stream(cfg)

    @classmethod
    def test(cls, cfg: CfgNode, model: nn.Module, evaluators: Any = None) -> Any:
        # Only the first process stops here, and saves; the others wait for it, and end with it.
        # The generators are kept because a resumed run does not repeat the evaluation.
        with STOP_REQUEST.can_stop_here(comm.is_main_process()), kept_generators():
            return super().test(cfg, model, evaluators)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: Optional[str] = None
    ) -> DatasetEvaluator:
        return build_evaluator(dataset_name, output_folder or f"{cfg.OUTPUT_DIR}/inference")


def _get_class_names(cfg: CfgNode) -> dict[str, list[str]]:
    """ "class_names" of the first training set that has any."""
    for name in cfg.DATASETS.TRAIN:
        names = MetadataCatalog.get(name).get("thing_classes")
        if names:
            return {"class_names": [str(x) for x in names]}
    return {}


def _get_versions() -> dict[str, str]:
    return {
        "focal_det": focal_det.__version__,
        "detectron2": detectron2.__version__,
        "torch": str(torch.__version__),
    }


def _replace_checkpointer(hooks: list[HookBase], saver: RunSaver) -> list[HookBase]:
    """The hooks with `saver` in place of Detectron2's checkpointer, before the evaluation.

    Only the first process has a checkpointer of Detectron2; all of them get `saver`.
    """
    others = [x for x in hooks if not isinstance(x, PeriodicCheckpointer)]
    position = next(i for i, x in enumerate(others) if isinstance(x, EvalHook))
    return [*others[:position], saver, *others[position:]]


def _get_settings(group: dict[str, Any]) -> dict[str, Any]:
    """Learning rate, momentum and the like of a parameter group, without the parameters."""
    return {k: v for k, v in group.items() if k != "params"}
