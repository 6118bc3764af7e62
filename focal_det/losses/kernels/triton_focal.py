"""Triton kernels of the focal loss and of FL*: value and gradient in one pass over the logits.

Importing this module needs Triton (ImportError without it); a kernel is compiled at its first call.
The plain functions of `per_anchor` are the definition. As there, x is a logit and z the logit of
the wrong answer (-x for an anchor's own class, else x); here p = sigmoid(z) and q = sigmoid(-z).

Shape of the work: one program takes BLOCK consecutive logits of one image of a pyramid level, so
that loads and stores are contiguous vectors for any K. It writes one partial sum, and torch adds
the sums up: without atomics, the result is the same every time. On an H100, arithmetic and not
memory would set the pace above about 50 instructions per 16-bit logit, so the kernel saves on them:
it takes about 38.

- Finding the anchor and the class of an element takes a division by K. It is done once per group of
  V logits (those of one vector load), and K is a compile-time constant, which turns the division
  into a multiplication; a model has one K, so this costs no extra compilation. A group meets at
  most two anchors, as V <= K.
- Exponentials and logarithms have base 2, for which the hardware has instructions. The hardware's
  logarithm is not precise near 1, so log2(1 + e), with e = exp(-|z|), is a polynomial; 1 / (1 + e)
  is a second exponential, as a division costs more.
"""

import math
from typing import Optional

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048  # 16 logits for each of 128 threads, in 35 to 60 registers
_BYTES_PER_LOAD = 16
_LARGEST_UNIT = 16
_NUM_WARPS = 4
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_GENERAL = -1  # POWER unless gamma is 0, 1 or 2, where p^gamma is a product

_FAR = tl.constexpr(-1e30)  # a logit z whose loss and slope are 0
_LOG2_E = tl.constexpr(1.4426950408889634)
_LN_2 = tl.constexpr(0.6931471805599453)


def focal_sums_and_grad(
    logits: Tensor,
    labels: Tensor,
    *,
    pos_weight: float,
    neg_weight: float,
    gamma: float,
    with_grad: bool,
) -> tuple[Tensor, Optional[Tensor]]:
    """Focal loss per image, eq. 5 of arXiv 1708.02002, and its gradient.

    Args:
        logits: (N, R, K) float32, float16 or bfloat16, computed in float32. Read in place if the
            last two dimensions are contiguous, else copied.
        labels: (N, R) int64 in {-1, 0..K}. Read in place if the last dimension is contiguous.
        pos_weight, neg_weight: see `focal_loss_per_anchor`; numbers only.
        gamma: focusing parameter, >= 0; 0, 1 and 2 are fastest.
        with_grad: False to leave the gradient out.

    Returns:
        (N,) float32 sums in nats; (N, R, K) contiguous derivative of an image's sum with respect to
        its logits, in their dtype, or None. 0 for ignored anchors, whatever their logits.

    Raises:
        ValueError: a dtype or a shape that does not fit. The values of labels are not checked.
    """
    power = _GENERAL
    if gamma in (0, 1, 2):
        power = int(gamma)
    factors = (pos_weight, neg_weight, gamma, 0.0)
    return _launch(logits, labels, factors, with_grad=with_grad, POWER=power, STAR=False)


def focal_star_sums_and_grad(
    logits: Tensor,
    labels: Tensor,
    *,
    pos_weight: float,
    neg_weight: float,
    gamma: float,
    beta: float,
    with_grad: bool,
) -> tuple[Tensor, Optional[Tensor]]:
    """FL* per image, appendix A of arXiv 1708.02002, and its gradient.

    Args:
        gamma, beta: see `focal_star_loss_per_anchor`; the others, see `focal_sums_and_grad`.
    """
    factors = (pos_weight, neg_weight, gamma, beta)
    return _launch(logits, labels, factors, with_grad=with_grad, POWER=_GENERAL, STAR=True)


def _launch(
    logits: Tensor, labels: Tensor, factors: tuple[float, ...], *, with_grad: bool, **form: int
) -> tuple[Tensor, Optional[Tensor]]:
    """Check, allocate and run the kernel.

    Args:
        factors: pos_weight, neg_weight, gamma, beta.
        form: the constants POWER and STAR of the kernel.
    """
    _check(logits, labels)
    num_images, num_anchors, num_classes = logits.shape
    size = num_anchors * num_classes
    grad = None
    if with_grad:
        grad = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    if logits.numel() == 0:
        return torch.zeros(num_images, device=logits.device), grad

    logits, labels = _make_dense(logits, labels)
    image_stride = size
    if num_images > 1:
        image_stride = logits.stride(0)
    unit = math.gcd(_LARGEST_UNIT, size, image_stride)
    partial_sums = torch.empty(num_images, triton.cdiv(size, _BLOCK), device=logits.device)
    with torch.cuda.device_of(logits):
        _kernel[partial_sums.shape[1], num_images](
            logits,
            labels,
            partial_sums if grad is None else grad,  # without a gradient, any pointer
            partial_sums,
            image_stride // unit,
            labels.stride(0),
            size // unit,
            *map(float, factors),
            **get_constants(logits.dtype, num_classes, unit, with_grad),
            **form,
            num_warps=_NUM_WARPS,
        )
    return partial_sums.sum(dim=1), grad


def get_constants(
    dtype: torch.dtype, num_classes: int, unit: int, with_grad: bool
) -> dict[str, int]:
    """Constants that the kernel is compiled for, in addition to the form of the loss."""
    group = min(_BYTES_PER_LOAD // dtype.itemsize, unit)
    if group > num_classes:
        group = math.gcd(group, num_classes)
    return {"K": num_classes, "V": group, "UNIT": unit, "BLOCK": _BLOCK, "WITH_GRAD": with_grad}


def _check(logits: Tensor, labels: Tensor) -> None:
    """Refuse what the kernel would read wrongly; it does not check addresses."""
    if logits.dtype not in _DTYPES:
        raise ValueError(f"logits must be float32, float16 or bfloat16, got {logits.dtype}")
    if logits.dim() != 3:
        raise ValueError(f"logits must have shape (N, R, K), got {tuple(logits.shape)}")
    if labels.shape != logits.shape[:2]:
        raise ValueError(
            f"labels must have shape {tuple(logits.shape[:2])}, got {tuple(labels.shape)}"
        )
    if labels.dtype != torch.int64 or labels.device != logits.device:
        raise ValueError(
            f"labels must be int64 on {logits.device}, got {labels.dtype} on {labels.device}"
        )


def _make_dense(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and labels that are contiguous within each image; images may be apart."""
    _, num_anchors, num_classes = logits.shape
    _, anchor_stride, class_stride = logits.stride()
    # The stride of a dimension with one element says nothing.
    has_dense_classes = num_classes == 1 or class_stride == 1
    has_dense_anchors = num_anchors == 1 or anchor_stride == num_classes
    if not (has_dense_classes and has_dense_anchors):
        logits = logits.contiguous()
    if num_anchors > 1 and labels.stride(1) != 1:
        labels = labels.contiguous()
    return logits, labels


# `size`, R times K, and the stride between images are passed divided by UNIT, so that the compiler
# knows that they are multiples of UNIT: loads and stores are vectors of up to UNIT logits. UNIT is
# 16 for K = 80; for any K it is 16 on p3 and at least 4 on p4.
@triton.jit
def _kernel(
    logits_ptr,
    labels_ptr,
    grad_ptr,
    sums_ptr,
    logits_stride,
    labels_stride,
    size,
    pos_weight,
    neg_weight,
    gamma,
    beta,
    K: tl.constexpr,
    V: tl.constexpr,
    UNIT: tl.constexpr,
    BLOCK: tl.constexpr,
    WITH_GRAD: tl.constexpr,
    POWER: tl.constexpr,
    STAR: tl.constexpr,
):
    unit = tl.full((), UNIT, tl.int64)
    size = size * unit
    logits_stride = logits_stride * unit
    image = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0).to(tl.int64) * BLOCK
    num_left = tl.minimum(size - start, BLOCK).to(tl.int32)
    own, ignored = _find_own(labels_ptr + image * labels_stride, start, num_left, K, V, BLOCK)
    offsets = tl.arange(0, BLOCK)
    is_inside = offsets < num_left
    x = tl.load(logits_ptr + (image * logits_stride + start) + offsets, mask=is_inside, other=0.0)
    x = tl.where(ignored, _FAR, tl.reshape(x, (BLOCK // V, V)).to(tl.float32))
    z = tl.where(own, -x, x)
    # The weight has the sign of dz/dx, which the slope needs; tl.abs takes it off the value below.
    weight = tl.where(own, -pos_weight, neg_weight)
    value, slope = _get_terms(z, weight, gamma, beta, POWER, STAR)
    if WITH_GRAD:
        grad = tl.reshape(slope, (BLOCK,)).to(grad_ptr.dtype.element_ty)
        tl.store(grad_ptr + (image * size + start) + offsets, grad, mask=is_inside)
    total = tl.sum(tl.reshape(tl.abs(value), (BLOCK,)), axis=0)
    tl.store(sums_ptr + image * tl.num_programs(0) + tl.program_id(0), total)


@triton.jit
def _find_own(labels_ptr, start, num_left, K: tl.constexpr, V: tl.constexpr, BLOCK: tl.constexpr):
    """Masks (BLOCK / V, V) of the logits of own classes, and of those ignored or past the end.

    `start` is 64 bits wide; within the block, 32 bits are enough.
    """
    first_anchor = start // K
    labels_ptr += first_anchor
    group_start = tl.arange(0, BLOCK // V) * V
    element = (start - first_anchor * K + group_start).to(tl.uint32)
    divisor = tl.full((1,), K, tl.uint32)
    anchor = element // divisor
    first_class = (element - anchor * divisor).to(tl.int32)
    label = tl.load(labels_ptr + anchor, mask=group_start < num_left, other=-1).to(tl.int32)
    lane = tl.arange(0, V)[None, :]
    own = (label - first_class)[:, None] == lane
    ignored = (label < 0)[:, None]
    if K % V != 0:
        # The next anchor begins at lane `edge` if that is below V. If the anchor before it is
        # background (label K), `own` is true at that lane so far; `is_next` replaces it.
        edge = K - first_class
        has_next = (edge < V) & (group_start + edge < num_left)
        next_label = tl.load(labels_ptr + anchor + 1, mask=has_next, other=-1).to(tl.int32)
        is_next = lane >= edge[:, None]
        own = tl.where(is_next, (edge + next_label)[:, None] == lane, own)
        ignored = tl.where(is_next, (next_label < 0)[:, None], ignored)
    return own, ignored


@triton.jit
def _get_terms(z, weight, gamma, beta, POWER: tl.constexpr, STAR: tl.constexpr):
    """Weighted value of a term and its derivative by z."""
    if STAR:
        value, slope = _focal_star(z, weight, gamma, beta)
    else:
        value, slope = _focal(z, weight, gamma, POWER)
    return value, slope


@triton.jit
def _focal(z, weight, gamma, POWER: tl.constexpr):
    """w p^gamma softplus(z) and its derivative w p^gamma (p + gamma q softplus(z)).

    The derivative is a sum of terms of one sign, so nothing cancels.
    """
    log2_1p, softplus, p, q = _get_logistic(z)
    if POWER == 0:
        factor = weight
    elif POWER == 1:
        factor = weight * p
    elif POWER == 2:
        factor = weight * (p * p)
    else:
        factor = weight * tl.exp2(tl.minimum(z, 0.0) * (gamma * _LOG2_E) - log2_1p * gamma)
    value = factor * softplus
    return value, factor * p + (gamma * q) * value


@triton.jit
def _focal_star(z, weight, gamma, beta):
    """w softplus(gamma z - beta) / gamma and its derivative w sigmoid(gamma z - beta)."""
    _, softplus, p, _ = _get_logistic(z * gamma - beta)
    return weight * softplus * (1.0 / gamma), weight * p


@triton.jit
def _get_logistic(z):
    """log2(1 + exp(-|z|)), softplus(z), sigmoid(z) and sigmoid(-z), precise for every finite z."""
    e = tl.exp2(tl.abs(z) * -_LOG2_E)
    log2_1p = _log2_1p(e)
    larger = tl.exp2(-log2_1p)
    smaller = e * larger
    softplus = tl.maximum(z, 0.0) + log2_1p * _LN_2
    return log2_1p, softplus, tl.where(z > 0, larger, smaller), tl.where(z > 0, smaller, larger)


@triton.jit
def _log2_1p(e):
    """log2(1 + e) for e in [0, 1], to 4e-7 of its value.

    It is e times the polynomial of degree 7 with the least relative error.
    """
    poly = e * -0.012319453 + 0.063607821
    poly = poly * e - 0.15535178
    poly = poly * e + 0.25600965
    poly = poly * e - 0.35339481
    poly = poly * e + 0.48006369
    poly = poly * e - 0.72131009
    return e * (poly * e + 1.4426948)
