"""Checkpoints of a run: at fixed intervals, at its end, and where it has to stop."""

from collections.abc import Mapping
from typing import Any, Optional

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm

from focal_det.checkpoint.checkpointer import HealthyCheckpointer

from .run_state import gather_run_state
from .stop_request import STOP_REQUEST


class RunSaver(HookBase):
    """Saves what Detectron2's PeriodicCheckpointer saves, and the state of every process.

    Detectron2's hook is in the first process only, which does not know the state of the others.

    Args:
        cfg: of the run, for SOLVER.CHECKPOINT_PERIOD and TEST.EVAL_PERIOD.
        checkpointer: writes in the first process.
        parts: objects of this process with a state, see `gather_run_state`.
    """

    def __init__(
        self, cfg: CfgNode, checkpointer: HealthyCheckpointer, parts: Mapping[str, Any]
    ) -> None:
        self._checkpoint_period = cfg.SOLVER.CHECKPOINT_PERIOD
        self._eval_period = cfg.TEST.EVAL_PERIOD
        self._checkpointer = checkpointer
        self._parts = parts
        self._saved_iteration: Optional[int] = None
        # Run state after the last step, kept until the next in case an evaluation is interrupted.
        self._before_evaluation: Optional[dict[str, Any]] = None
        self._has_begun = False

    def before_train(self) -> None:
        if self.trainer.start_iter < self.trainer.max_iter:
            return
        # A run that was interrupted after its last step may not have saved its final model.
        run_state = self._gather()
        if not self._checkpointer.get_checkpoint_file().endswith("model_final.pth"):
            self._save("model_final", self.trainer.start_iter - 1, run_state)

    def before_step(self) -> None:
        self._has_begun = True
        self._before_evaluation = None

    def after_step(self) -> None:
        iteration = self.trainer.iter
        is_last = iteration + 1 >= self.trainer.max_iter
        is_due = _is_multiple(iteration + 1, self._checkpoint_period)
        is_evaluated = _is_multiple(iteration + 1, self._eval_period)
        if not (is_last or is_due or is_evaluated):
            return
        run_state = self._gather()
        if is_due:
            self._save(_get_name(iteration), iteration, run_state)
        if is_last:
            self._save("model_final", iteration, run_state)
        self._before_evaluation = run_state

    def save_last_step(self) -> None:
        """Save the state after the last complete step; the current one has changed nothing yet.

        All processes must call this together; they return when the checkpoint is complete.
        """
        # A checkpoint stores this number, which is already that of the current step.
        self.trainer.iter -= 1
        iteration = self.trainer.iter
        if iteration >= self.trainer.start_iter and iteration != self._saved_iteration:
            self._save(_get_name(iteration), iteration, self._gather())
        comm.synchronize()

    def save_this_step(self) -> None:
        """Save the state after this step, for a hook that stops the run before RunSaver is called.

        All processes must call this together; they return when the checkpoint is complete.
        """
        iteration = self.trainer.iter
        # A resumed run that has made no step yet has nothing new to save.
        if self._has_begun and iteration != self._saved_iteration:
            self._save(_get_name(iteration), iteration, self._gather())
        comm.synchronize()

    def save_interrupted_evaluation(self) -> None:
        """Save the state that was being evaluated; the first process does so alone."""
        iteration = min(self.trainer.iter, self.trainer.max_iter - 1)
        if self._before_evaluation is not None and iteration != self._saved_iteration:
            self._save(_get_name(iteration), iteration, self._before_evaluation)

    def _gather(self) -> dict[str, Any]:
        return gather_run_state(self._parts, self._checkpointer.model)

    def _save(self, name: str, iteration: int, run_state: dict[str, Any]) -> None:
        self._saved_iteration = iteration
        if comm.is_main_process():
            with STOP_REQUEST.saving():
                self._checkpointer.save(name, iteration=iteration, run_state=run_state)


def _is_multiple(number: int, period: int) -> bool:
    return period > 0 and number % period == 0


def _get_name(iteration: int) -> str:
    return f"model_{iteration:07d}"
