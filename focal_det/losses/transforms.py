"""Whether torch.func or forward-mode differentiation is active."""

import torch
from torch.autograd import forward_ad


def is_forward_mode() -> bool:
    """Whether tensors may carry tangents: inside `forward_ad.dual_level` or `torch.func.jvp`."""
    # torch has no public API for this. `torch.func.jvp` is covered, as it enters a dual level, too.
    return forward_ad._current_level >= 0


def is_transformed() -> bool:
    """Whether tensors may carry tangents or belong to a transform of torch.func (grad, vmap, ...).

    While torch.compile traces, only tangents count: transforms need no special path there.
    """
    if is_forward_mode():
        return True
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
