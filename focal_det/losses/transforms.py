"""Whether torch.func or forward-mode differentiation is at work."""

import torch
from torch.autograd import forward_ad


def is_forward_mode() -> bool:
    """Whether tensors may carry tangents: in `forward_ad.dual_level`, which `torch.func.jvp` enters."""
    return forward_ad._current_level >= 0


def is_transformed() -> bool:
    """Whether tensors may carry tangents, or be those of torch.func (grad, vmap, ...).

    While torch.compile traces, tensors of torch.func need no special path.
    """
    if is_forward_mode():
        return True
    return not torch.compiler.is_compiling() and torch._C._are_functorch_transforms_active()
