"""Fast paths of losses: value and gradient in one pass over the logits.

The plain functions of `per_anchor` are the definition. A fast path takes logits and labels of one
pyramid level, reads each logit once, and writes nothing of the logits' size except the gradient: no
one-hot tensor, no masked copy. torch.compile and autocast see it as a single operator.
"""

import warnings
from functools import lru_cache
from importlib import metadata
from types import ModuleType
from typing import Any, Optional

import torch
from torch import Tensor

from ..per_anchor import focal_loss_per_anchor, focal_star_loss_per_anchor
from ..transforms import is_transformed
from . import cpu

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# A float16 gradient is stored multiplied by this factor until backward applies the incoming
# gradient: unscaled, most of its entries are too small for float16.
_FLOAT16_SCALE = 4096.0


def is_supported(logits: Tensor) -> bool:
    """Whether a fast path exists for the logits; torch.func and forward mode have none."""
    if logits.dtype not in _DTYPES or is_transformed():
        return False
    if not logits.is_cuda:
        return logits.device.type == "cpu"
    needed = (7, 0)
    if logits.dtype == torch.bfloat16:
        needed = (8, 0)
    return torch.cuda.get_device_capability(logits.device) >= needed and _has_triton()


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # untyped in torch
def _has_triton() -> bool:
    """Whether Triton can launch kernels; a constant for torch.compile."""
    return _can_launch()


@lru_cache(maxsize=1)
def _can_launch() -> bool:
    """Whether Triton is installed, is new enough, and can build its launcher.

    3.2 is the oldest version that the kernels have been run with. Triton builds its launcher in C
    before the first kernel. Slim container images lack a compiler or Python's headers, so the first
    training step would raise; this warns instead.
    """
    try:
        major, minor = metadata.version("triton").split(".")[:2]
    except metadata.PackageNotFoundError:
        return False
    if (int(major), int(minor)) < (3, 2):
        return False
    try:
        import triton

        # Builds the launcher, or takes it from Triton's cache.
        triton.runtime.driver.active.utils  # noqa: B018
    except Exception as error:  # a missing compiler, header or libcuda, a read-only cache, ...
        warnings.warn(
            "Triton cannot launch kernels, so losses on the GPU take their plain path, which is "
            "slower and needs more memory. It needs a C compiler and Python.h (gcc and "
            "python3-dev). "
            f"{type(error).__name__}: {error}",
            stacklevel=2,
        )
        return False
    return True


def focal_sums(
    logits: Tensor,
    labels: Tensor,
    *,
    pos_weight: float,
    neg_weight: float,
    gamma: float,
    beta: Optional[float] = None,
) -> Tensor:
    """Focal loss of each image, or FL* if `beta` is given.

    Args:
        logits: (N, R, K) float32, float16 or bfloat16; computed in float32.
        labels: (N, R); see `focal_loss_from_labels`.
        pos_weight, neg_weight: see `focal_loss_per_anchor`; numbers only.
        gamma, beta: see `focal_loss_from_labels` and `focal_star_loss_per_anchor`.

    Returns:
        (N,) float32 sums in nats.
    """
    with_grad = torch.is_grad_enabled() and logits.requires_grad
    args = (pos_weight, neg_weight, gamma, beta or 0.0, beta is not None)
    sums: Tensor = _focal_sums(logits, labels, *args, with_grad)[0]
    return sums


@torch.library.custom_op("focal_det::focal_sums", mutates_args=())
def _focal_sums(
    logits: Tensor,
    labels: Tensor,
    pos_weight: float,
    neg_weight: float,
    gamma: float,
    beta: float,
    star: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    """Sums (N,), and their derivatives times `_get_scale` (without `with_grad`, an empty tensor).

    The derivatives have the shape and dtype of the logits.
    """
    kernel: ModuleType = cpu
    if logits.is_cuda:
        from . import triton_focal  # needs Triton, which CPU builds of torch lack

        kernel = triton_focal
    scale = _get_scale(logits)
    weights = {"pos_weight": scale * pos_weight, "neg_weight": scale * neg_weight}
    if star:
        sums, grad = kernel.focal_star_sums_and_grad(
            logits, labels, gamma=gamma, beta=beta, with_grad=with_grad, **weights
        )
    else:
        sums, grad = kernel.focal_sums_and_grad(
            logits, labels, gamma=gamma, with_grad=with_grad, **weights
        )
    if grad is None:
        grad = logits.new_empty(0)
    return sums / scale, grad


@_focal_sums.register_fake
def _(
    logits: Tensor,
    labels: Tensor,
    pos_weight: float,
    neg_weight: float,
    gamma: float,
    beta: float,
    star: bool,
    with_grad: bool,
) -> tuple[Tensor, Tensor]:
    sums = logits.new_empty(logits.shape[0], dtype=torch.float32)
    if not with_grad:
        return sums, logits.new_empty(0)
    return sums, torch.empty_like(logits, memory_format=torch.contiguous_format)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    logits, labels, *ctx.args, ctx.has_grad = inputs
    ctx.save_for_backward(logits, labels, output[1])
    ctx.mark_non_differentiable(output[1])
    # Otherwise torch would make zeros of the logits' size as the gradient of the second output.
    ctx.set_materialize_grads(False)


def _backward(ctx: Any, grad_sums: Tensor, _: Optional[Tensor]) -> tuple[Optional[Tensor], ...]:
    logits, labels, grad = ctx.saved_tensors
    nothing = (None,) * (len(ctx.args) + 2)
    # Gradients are enabled here only with create_graph=True: a second derivative may follow.
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return _differentiable_backward(logits, labels, grad_sums, *ctx.args), *nothing
    factor = (grad_sums / _get_scale(logits)).view(-1, 1, 1)
    if type(grad) is not Tensor:  # being traced
        return (grad * factor).to(grad.dtype), *nothing
    if not ctx.has_grad:
        grad = _focal_sums(logits.detach(), labels, *ctx.args, True)[1]
    # Scaled in place, as a copy would double the memory. A second backward through the same graph
    # computes the gradient again.
    ctx.has_grad = False
    return grad.data.mul_(factor), *nothing


def _differentiable_backward(
    logits: Tensor,
    labels: Tensor,
    grad_sums: Tensor,
    pos_weight: float,
    neg_weight: float,
    gamma: float,
    beta: float,
    star: bool,
) -> Tensor:
    """Gradient through the plain functions, which can be differentiated again."""
    weights = {"pos_weight": pos_weight, "neg_weight": neg_weight, "gamma": gamma}
    if star:
        sums = focal_star_loss_per_anchor(logits, labels, beta=beta, **weights).sum(dim=1)
    else:
        sums = focal_loss_per_anchor(logits, labels, **weights).sum(dim=1)
    return torch.autograd.grad(sums, logits, grad_sums, create_graph=True)[0]


_focal_sums.register_autograd(_backward, setup_context=_setup_context)


def _get_scale(logits: Tensor) -> float:
    if logits.dtype == torch.float16:
        return _FLOAT16_SCALE
    return 1.0
