"""Focal loss and FL* on the CPU: plain torch on pieces of the logits that stay in the cache.

Nearly all terms are those of negatives; a piece of them goes through a dozen operations into
buffers of its size. Zeros in these buffers leave out the entries of positives and the rows of
ignored anchors. (A zero weight alone would not do: times an infinite loss it is NaN.) Positives are
computed separately, as subtracting large terms from a sum would leave their rounding errors behind.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from ..per_anchor import focal_slope, focal_term

# Elements of a piece: four float32 buffers of this size are 4 MB. A smaller piece would fit a
# nearer cache, but waking the threads would take longer than the operation. With many threads, a
# piece has _PIECE_OF_THREAD elements for each.
_PIECE = 2**18
_PIECE_OF_THREAD = 2**14
# Above this logit, p is 1 and softplus is the logit itself in float32; below it, exp is finite.
_LARGE_LOGIT = 80.0

# In buffers of a piece, zeroes the rows of ignored anchors and each positive's entry at its class.
Skip = Callable[..., None]
# Takes the logits of a piece, four buffers of its shape, a Skip for three of them, and the
# destination of the derivatives; returns the scalar sum.
Negatives = Callable[[Tensor, list[Tensor], Skip, Optional[Tensor]], Tensor]
# Takes the logits of P positives, (P,); returns their losses and derivatives.
Positives = Callable[[Tensor], tuple[Tensor, Tensor]]


def focal_sums_and_grad(
    logits: Tensor,
    labels: Tensor,
    *,
    pos_weight: float,
    neg_weight: float,
    gamma: float,
    with_grad: bool,
) -> tuple[Tensor, Optional[Tensor]]:
    """Sums of the focal loss per image, and their derivatives; see `kernels.focal_sums`.

    Returns:
        (N,) float32; (N, R, K) in the dtype of the logits, or None without `with_grad`.
    """

    def negatives(x: Tensor, buffers: list[Tensor], skip: Skip, out: Optional[Tensor]) -> Tensor:
        p, cross_entropy, weight, rest = buffers
        _sigmoid_and_softplus(x, p, cross_entropy, weight, rest)
        if not _power(p, gamma, out=weight):
            torch.sub(x, cross_entropy, out=weight)  # log p
            weight.mul_(gamma).exp_()
        weight.mul_(neg_weight)
        skip(p, cross_entropy, weight)
        total = torch.dot(weight.flatten(), cross_entropy.flatten())
        if out is not None:  # w p^gamma (p + gamma (1 - p) CE)
            cross_entropy.addcmul_(p, cross_entropy, value=-1)
            p.add_(cross_entropy, alpha=gamma)
            torch.mul(p, weight, out=out)
        return total

    def positives(x: Tensor) -> tuple[Tensor, Tensor]:
        return pos_weight * focal_term(-x, gamma), -pos_weight * focal_slope(-x, gamma)

    return _run(logits, labels, negatives, positives, with_grad)


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
    """Sums of FL* per image, and their derivatives; see `focal_sums_and_grad`."""

    def negatives(x: Tensor, buffers: list[Tensor], skip: Skip, out: Optional[Tensor]) -> Tensor:
        p, cross_entropy, weight, z = buffers
        torch.mul(x, gamma, out=z)
        z.sub_(beta)
        _sigmoid_and_softplus(z, p, cross_entropy, weight, z)
        weight.fill_(neg_weight)
        skip(p, cross_entropy, weight)
        total = torch.dot(weight.flatten(), cross_entropy.flatten()) / gamma
        if out is not None:
            torch.mul(p, weight, out=out)
        return total

    def positives(x: Tensor) -> tuple[Tensor, Tensor]:
        z = -(gamma * x + beta)
        return pos_weight * F.softplus(z) / gamma, -pos_weight * torch.sigmoid(z)

    return _run(logits, labels, negatives, positives, with_grad)


def _sigmoid_and_softplus(
    x: Tensor, p: Tensor, softplus: Tensor, scratch: Tensor, rest: Tensor
) -> None:
    """p = sigmoid(x) and softplus(x) = log(1 + exp(x)) from one exponential.

    torch's own softplus takes five times as long as exp and log (measured with AVX512), because of
    its log1p. With e = exp(x), u = 1 + e is rounded; the first order of this error is added back:
    log(1 + e) = log(u) + (e - (u - 1)) / u. So small terms are as precise as large ones.

    Args:
        p, softplus: receive the results.
        scratch, rest: are overwritten; `rest` may be x itself, which is then lost.
    """
    torch.clamp(x, max=_LARGE_LOGIT, out=p)
    p.exp_()
    torch.add(p, 1, out=scratch)
    torch.log(scratch, out=softplus)
    torch.maximum(softplus, x, out=softplus)
    torch.sub(scratch, 1, out=rest)
    rest.sub_(p)
    softplus.addcdiv_(rest, scratch, value=-1)
    p.div_(scratch)


def _power(p: Tensor, gamma: float, *, out: Tensor) -> bool:
    """p^gamma for p in [0, 1] by products and a square root.

    Returns:
        False, with `out` unchanged, if gamma needs other operations.
    """
    whole, rest = divmod(gamma, 1)
    if rest not in (0, 0.5) or whole > 8:
        return False
    if rest:
        torch.sqrt(p, out=out)
    else:
        out.fill_(1)
    for _ in range(int(whole)):
        out.mul_(p)
    return True


@torch.no_grad()
def _run(
    logits: Tensor, labels: Tensor, negatives: Negatives, positives: Positives, with_grad: bool
) -> tuple[Tensor, Optional[Tensor]]:
    """Sums of all terms per image, and their derivatives if `with_grad`."""
    logits = logits.contiguous()
    grad = None
    if with_grad:
        grad = torch.empty_like(logits)
    sums = torch.zeros(len(logits))
    if logits.numel() == 0:
        return sums, grad
    for i in range(len(logits)):
        grad_of_image = None
        if grad is not None:
            grad_of_image = grad[i]
        sums[i] = _sum_negatives(logits[i], labels[i], negatives, grad_of_image)
        rows = torch.nonzero((labels[i] >= 0) & (labels[i] < logits.shape[2]))[:, 0]
        classes = labels[i][rows]
        values, slopes = positives(logits[i][rows, classes].float())
        sums[i] += values.sum()
        if grad is not None:
            grad[i][rows, classes] = slopes.to(grad.dtype)
    return sums, grad


def _sum_negatives(
    logits: Tensor, labels: Tensor, negatives: Negatives, grad: Optional[Tensor]
) -> Tensor:
    """Scalar sum of the negative terms of an image with (R, K) logits; derivatives go to `grad`."""
    num_anchors, num_classes = logits.shape
    num_rows = max(1, max(_PIECE, _PIECE_OF_THREAD * torch.get_num_threads()) // num_classes)
    is_float32 = logits.dtype == torch.float32
    num_buffers = 4
    if not is_float32:
        num_buffers += 2  # logits and derivatives in float32
    shape = (min(num_rows, num_anchors), num_classes)
    buffers = [torch.empty(shape) for _ in range(num_buffers)]

    totals = []
    for start, skip in _plan_pieces(labels, num_classes, num_rows):
        piece = logits[start : start + num_rows]
        views = [x[: len(piece)] for x in buffers]
        x = piece
        if not is_float32:
            x = views[4].copy_(piece)
        out = None
        if grad is not None:
            out = grad[start : start + num_rows]
        if out is None or is_float32:
            totals.append(negatives(x, views[:4], skip, out))
        else:
            totals.append(negatives(x, views[:4], skip, views[5]))
            out.copy_(views[5])
    return torch.stack(totals).double().sum().float()


def _plan_pieces(labels: Tensor, num_classes: int, num_rows: int) -> Iterator[tuple[int, Skip]]:
    """Yield the first row of each piece of an image, and the Skip of that piece.

    Args:
        labels: (R,) int64 in {-1, 0..K}.
        num_rows: anchors of a piece.
    """
    skipped = torch.nonzero(labels < num_classes)[:, 0]
    is_ignored = labels[skipped] < 0
    ignored = skipped[is_ignored]
    own = skipped[~is_ignored]
    starts = torch.arange(0, len(labels) + num_rows, num_rows)
    # The rows are sorted, so those of a piece are a range of them.
    ignored_bounds = torch.searchsorted(ignored, starts).tolist()
    own_bounds = torch.searchsorted(own, starts).tolist()
    for index, start in enumerate(starts[:-1].tolist()):
        ignored_rows = ignored[ignored_bounds[index] : ignored_bounds[index + 1]]
        own_rows = own[own_bounds[index] : own_bounds[index + 1]]
        yield start, partial(_zero_out, ignored_rows - start, own_rows - start, labels[own_rows])


def _zero_out(ignored: Tensor, own: Tensor, classes: Tensor, *buffers: Tensor) -> None:
    """Put zeros into the rows of ignored anchors and at the class of each positive."""
    for buffer in buffers:
        buffer[ignored] = 0
        buffer[own, classes] = 0
