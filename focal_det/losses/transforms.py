"""Whether torch.func or forward-mode differentiation is active."""

import torch
from torch.autograd import forward_ad


def is_forward_mode() -> bool:
    """Whether tensors may carry tangents: inside `forward_ad.dual_level` or `torch.func.jvp`."""
    # torch has no public API to ask this. `torch.func.jvp` also enters a dual level, so this
    # covers it.
    return forward_ad._current_level >= 0


def is_transformed() -> bool:
    """Whether tensors may carry tangents or belong to a transform of torch.func (grad, vmap, ...).

    While torch.compile traces, only tangents count: transforms need no special path there.
    """
    if is_forward_mode():
        return True
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
