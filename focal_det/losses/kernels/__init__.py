"""Fast paths of losses: value and gradient in one pass over the logits. The plain functions beside this folder are the definition.

A fast path takes logits and labels of one pyramid level, reads each logit once, and writes nothing of the logits' size but the
gradient: no one-hot, no mask copy. It is one operator for torch.compile and autocast.
"""

import warnings
from functools import lru_cache
from importlib import metadata
from typing import Optional

import torch
from torch import Tensor

from ..per_anchor import focal_loss_per_anchor, focal_star_loss_per_anchor
from ..transforms import is_transformed
from . import cpu

_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# float16 keeps this multiple of the gradient until backward knows its scale, as most of it is too small for float16.
_FLOAT16_SCALE = 4096.0


def is_supported(logits: Tensor) -> bool:
    """Whether there is a fast path for the logits; torch.func and forward mode have none."""
    if logits.dtype not in _DTYPES or is_transformed():
        return False
    if logits.is_cuda:
        needed = (8, 0) if logits.dtype == torch.bfloat16 else (7, 0)
        return torch.cuda.get_device_capability(logits.device) >= needed and _has_triton()
    return logits.device.type == "cpu"


@torch.compiler.assume_constant_result
def _has_triton() -> bool:
    """Whether there is a Triton that can launch kernels."""
    return _can_launch()


@lru_cache(maxsize=1)
def _can_launch() -> bool:
    """Whether Triton is installed, as new as the kernels have been run with, and has its launcher.

    It builds that in C before its first kernel. Slim images have neither a compiler nor Python's
    headers, and the first training step would raise: a warning takes its place.
    """
    try:
        major, minor = metadata.version("triton").split(".")[:2]
    except metadata.PackageNotFoundError:
        return False
    if (int(major), int(minor)) < (3, 2):
        return False
    try:
        import triton

        triton.runtime.driver.active.utils  # noqa: B018  (builds it, or takes it from Triton's cache)
    except Exception as error:  # no compiler, no header, no libcuda, a cache that is read-only, ...
        warnings.warn(
            "Triton cannot launch kernels, so losses on the GPU take their plain path, which is slower "
            "and needs more memory. It needs a C compiler and Python.h (gcc and python3-dev). "
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
    """Focal loss of each image (eq. 5 of arXiv 1708.02002), or FL* (its appendix A) if there is a beta.

    Args:
        logits: (N, R, K) float32, float16 or bfloat16; computed in float32.
        labels: (N, R) int64 in {-1, 0..K}: -1 is ignored, K is background.
        pos_weight, neg_weight: factors of the terms of an anchor's own class and of all others, >= 0.
        gamma: focusing parameter, >= 0; for FL* > 0.

    Returns:
        (N,) float32 sums in nats.
    """
    with_grad = torch.is_grad_enabled() and logits.requires_grad
    args = (pos_weight, neg_weight, gamma, 0.0 if beta is None else beta, beta is not None)
    return _focal_sums(logits, labels, *args, with_grad)[0]


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
    """Sums (N,), and their derivatives, the shape and dtype of the logits, times `_get_scale`; empty unless `with_grad`."""
    if logits.is_cuda:
        from . import triton_focal as kernel
    else:
        kernel = cpu
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
    return sums / scale, logits.new_empty(0) if grad is None else grad


@_focal_sums.register_fake
def _(logits, labels, pos_weight, neg_weight, gamma, beta, star, with_grad):
    sums = logits.new_empty(logits.shape[0], dtype=torch.float32)
    return sums, torch.empty_like(
        logits, memory_format=torch.contiguous_format
    ) if with_grad else logits.new_empty(0)


def _setup_context(ctx, inputs, output) -> None:
    logits, labels, *ctx.args, ctx.has_grad = inputs
    ctx.save_for_backward(logits, labels, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # nor are zeros made for it


def _backward(ctx, grad_sums: Tensor, _) -> tuple[Optional[Tensor], ...]:
    logits, labels, grad = ctx.saved_tensors
    nothing = (None,) * (len(ctx.args) + 2)
    if (
        torch.is_grad_enabled() and not torch.compiler.is_compiling()
    ):  # create_graph: there is a second derivative to come
        return _differentiable_backward(logits, labels, grad_sums, *ctx.args), *nothing
    factor = (grad_sums / _get_scale(logits)).view(-1, 1, 1)
    if type(grad) is not Tensor:  # being traced
        return (grad * factor).to(grad.dtype), *nothing
    if not ctx.has_grad:
        grad = _focal_sums(logits.detach(), labels, *ctx.args, True)[1]
    # Scaled in place, as a copy would double the memory; a second backward through the same graph computes it again.
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
    """The gradient by the plain functions, which can be differentiated again."""
    weights = {"pos_weight": pos_weight, "neg_weight": neg_weight, "gamma": gamma}
    if star:
        sums = focal_star_loss_per_anchor(logits, labels, beta=beta, **weights).sum(dim=1)
    else:
        sums = focal_loss_per_anchor(logits, labels, **weights).sum(dim=1)
    return torch.autograd.grad(sums, logits, grad_sums, create_graph=True)[0]


_focal_sums.register_autograd(_backward, setup_context=_setup_context)


def _get_scale(logits: Tensor) -> float:
    return _FLOAT16_SCALE if logits.dtype == torch.float16 else 1.0
