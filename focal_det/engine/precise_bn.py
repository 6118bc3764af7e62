"""Detectron2's PreciseBN, for runs that can stop while it computes."""

from typing import Any

from detectron2.engine.hooks import PreciseBN
from fvcore.nn.precise_bn import get_bn_modules

from .training_stream import TrainingStream


class ResumablePreciseBN(PreciseBN):
    """PreciseBN whose update a resumed run repeats if the run stopped during it.

    Args:
        hook: Detectron2's, enabled and with a TrainingStream; this one takes its place.
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
        """Restore the buffers and hooks that the model had before an unfinished update.

        The momentum of its layers stays changed, so the model must not train any more.
        """
        for buffer, before in zip(self._model.buffers(), self._buffers_before):
            buffer.copy_(before)
        # fvcore's hooks are still there. They forbid another forward pass, which a save makes.
        for layer, hooks in self._hooks_before:
            layer._forward_pre_hooks.clear()
            layer._forward_pre_hooks.update(hooks)

    def state_dict(self) -> dict[str, Any]:
        """The place in the data where the next update begins, and whether it is due at once."""
        data = self._data_before if self._is_pending else self.stream.state_dict()
        return {**data, "is_pending": self._is_pending}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._is_pending = state.get("is_pending", False)
        self.stream.load_state_dict(state)
