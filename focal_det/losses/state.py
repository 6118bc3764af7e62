"""State that training changes: optional buffers of a checkpoint, and sums over processes."""

from typing import Any

import torch
from torch import Tensor, distributed, nn

from .transforms import is_transformed


def is_training_step(module: nn.Module) -> bool:
    """Whether a forward of a module belongs to a training step; no other forward moves its state.

    In a training step the module is in training mode and gradients are enabled. A forward without
    gradients, as in fvcore's PreciseBN, only reads the state; so does one under a transform of
    torch.func, which expects pure functions. Whether the logits require a gradient makes no
    difference: the state also moves with a frozen head.
    """
    return module.training and torch.is_grad_enabled() and not is_transformed()


class OptionalBuffers(nn.Module):
    """A module whose buffers keep their values if a checkpoint lacks them.

    A base for modules with a state that Detectron2's RetinaNet does not have: Detectron2's
    checkpoints load as if nothing were missing, also with `strict=True`. A buffer in the checkpoint
    is loaded, and another shape is an error, as usual. Parameters and submodules are not optional.
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
        # In place: torch collects the missing keys of all modules in this one list.
        missing_keys[:] = [key for key in missing_keys if key not in optional]


def get_num_processes() -> int:
    """Number of processes that train together; 1 without torch.distributed."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum over all processes of a tensor, of the same shape in each; no gradient, not in place."""
    if get_num_processes() == 1:
        return values.detach()
    # A copy, as all_reduce works in place.
    total = values.detach().clone()
    distributed.all_reduce(total)
    return total
