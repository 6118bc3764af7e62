"""Buffers that a checkpoint may lack: state of our own, which stock checkpoints know nothing of."""

from typing import Any

from torch import Tensor, nn


class OptionalBuffers(nn.Module):
    """A module whose own buffers keep their values when a checkpoint does not have them, also with `strict=True`.

    A base for modules with state that Detectron2's RetinaNet has not: its checkpoints load as if nothing were missing. A buffer
    that the checkpoint has is loaded, and one of another shape is an error, as always; parameters and submodules are not optional.
    """

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Tensor],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        optional = {prefix + name for name in self._buffers}
        missing_keys[:] = [key for key in missing_keys if key not in optional]
