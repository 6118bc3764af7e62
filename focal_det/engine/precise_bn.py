"""Detectron2's PreciseBN, for runs that may be interrupted while it computes."""

from typing import Any

from detectron2.engine.hooks import PreciseBN
from fvcore.nn.precise_bn import get_bn_modules

from .training_stream import TrainingStream


class ResumablePreciseBN(PreciseBN):
    """PreciseBN that can be interrupted: a resumed run starts an unfinished update over.

    Args:
        hook: Detectron2's hook, which this one replaces; must be enabled and read a TrainingStream.
    """

    def __init__(self, hook: PreciseBN) -> None:
        super().__init__(hook._period, hook._model, hook._data_loader, hook._num_iter)
        self.stream: TrainingStream = hook._data_loader
        self._is_pending = False
        self._data_before = self.stream.state_dict()

    def before_train(self) -> None:
        if self._is_pending:
            self.update_stats()

    def update_stats(self) -> None:
        self._is_pending = True
        self._data_before = self.stream.state_dict()
        self._buffers_before = [x.clone() for x in self._model.buffers()]
        self._hooks_before = [(x, dict(x._forward_pre_hooks)) for x in get_bn_modules(self._model)]
        super().update_stats()
        self._is_pending = False

    def undo(self) -> None:
        """Restore the model's buffers and hooks to their state before the unfinished update.

        The layers keep the momentum of 1 that fvcore has set, so do not train the model after this.
        """
        for buffer, before in zip(self._model.buffers(), self._buffers_before):
            buffer.copy_(before)
        # fvcore's hooks are still registered, and would raise when a save runs the model.
        for layer, hooks in self._hooks_before:
            layer._forward_pre_hooks.clear()
            layer._forward_pre_hooks.update(hooks)

    def state_dict(self) -> dict[str, Any]:
        """Where in the data the next update begins, and whether a resumed run begins with it."""
        data = self._data_before if self._is_pending else self.stream.state_dict()
        return {**data, "is_pending": self._is_pending}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._is_pending = state.get("is_pending", False)
        self.stream.load_state_dict(state)
