"""State that training changes: buffers a checkpoint may lack, and sums over the processes of a run."""

from typing import Any

import torch
from torch import Tensor, distributed, nn

from .transforms import is_transformed


def is_training_step(module: nn.Module) -> bool:
    """Whether a forward of a module is one of a step that trains, which alone moves its state.

    It is in training mode with gradients enabled. A forward without gradients, such as those of
    fvcore's PreciseBN, reads the state only, and so do the transforms of torch.func, which are of
    pure functions. Whether the logits themselves require a gradient makes no difference.
    """
    return module.training and torch.is_grad_enabled() and not is_transformed()


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


def get_num_processes() -> int:
    """Processes that train together; 1 outside a distributed training."""
    return (
        distributed.get_world_size()
        if distributed.is_available() and distributed.is_initialized()
        else 1
    )


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of a tensor of the same shape over all processes, without gradient; the argument is not changed."""
    if get_num_processes() == 1:
        return values.detach()
    total = values.detach().clone()
    distributed.all_reduce(total)
    return total
