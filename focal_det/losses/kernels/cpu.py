"""Focal loss and FL* on the CPU: plain torch on pieces of the logits that stay in the cache.

Nearly all terms are negatives; a piece of them goes through a dozen operations into buffers of its
size. The entries of positives and the rows of ignored anchors are left out of that by zeros in these
buffers (a weight of zero would not do: it makes NaN of an infinite logit), and positives are computed
apart: nothing is subtracted from a sum, so no large term leaves its rounding error behind.
"""

from functools import partial
from typing import Callable, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from ..per_anchor import focal_slope, focal_term

# Elements of a piece: four float32 buffers of it are 4 MB. A smaller one fits a nearer cache, but then waking the threads for each
# operation takes longer than the operation; with many threads each has its least share.
_PIECE = 2**18
_PIECE_OF_THREAD = 2**14
# Above this logit p is 1 and softplus the logit itself, in float32; below it exp is finite.
_LARGE_LOGIT = 80.0

# Puts zeros into buffers of a piece where an anchor is ignored or has its own class.
Skip = Callable[[Tensor, Tensor, Tensor], None]
# From a piece's logits, four buffers of its shape, what puts zeros into three of them, and where the
# derivatives go, to the sum.
Negatives = Callable[[Tensor, list[Tensor], Skip, Optional[Tensor]], Tensor]
# From logits (P,) of positives to losses and derivatives.
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
    """Sums of the focal loss per image, and their derivatives; see `focal_det.losses.kernels.focal_sums`.

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
    """p = sigmoid(x) and softplus(x) = log(1 + exp(x)) of one exponential; `rest` may be x itself, which is then lost.

    torch's own softplus takes five times as long as exp and log (measured with AVX512), for its log1p. Here u = 1 + e is rounded,
    and the first order of what it lost is added again: log(1 + e) = log(u) + (e - (u - 1)) / u. So small terms are as precise as
    large ones.
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
    """p^gamma for p in [0, 1] by products and a square root; False, and nothing is done, if it takes more than these."""
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
    logits = logits.contiguous()
    grad = torch.empty_like(logits) if with_grad else None
    sums = torch.zeros(len(logits))
    for i in range(len(logits) if logits.numel() else 0):
        grad_of_image = None if grad is None else grad[i]
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
    """() sum of the negative terms of an image, logits (R, K), and their derivatives into `grad`."""
    num_anchors, num_classes = logits.shape
    num_rows = max(1, max(_PIECE, _PIECE_OF_THREAD * torch.get_num_threads()) // num_classes)
    is_float32 = logits.dtype == torch.float32
    buffers = [
        torch.empty(min(num_rows, num_anchors), num_classes) for _ in range(4 if is_float32 else 6)
    ]
    skipped = torch.nonzero(labels < num_classes)[:, 0]  # ignored, or with a class
    is_ignored = labels[skipped] < 0
    ignored, own = skipped[is_ignored], skipped[~is_ignored]
    starts = torch.arange(0, num_anchors + num_rows, num_rows)
    ignored_bounds = torch.searchsorted(ignored, starts).tolist()
    own_bounds = torch.searchsorted(own, starts).tolist()
    totals = []
    for index, start in enumerate(starts[:-1].tolist()):
        piece = logits[start : start + num_rows]
        ignored_rows = ignored[ignored_bounds[index] : ignored_bounds[index + 1]]
        own_rows = own[own_bounds[index] : own_bounds[index + 1]]
        skip = partial(_zero_out, ignored_rows - start, own_rows - start, labels[own_rows])
        views = [x[: len(piece)] for x in buffers]
        x = piece if is_float32 else views[4].copy_(piece)
        out = None if grad is None else grad[start : start + num_rows]
        target = out if out is None or is_float32 else views[5]
        totals.append(negatives(x, views[:4], skip, target))
        if target is not out:
            out.copy_(target)
    return torch.stack(totals).double().sum().float()


def _zero_out(ignored: Tensor, own: Tensor, classes: Tensor, *buffers: Tensor) -> None:
    """Put zeros into the rows of ignored anchors, and at the classes of those that have one."""
    for buffer in buffers:
        buffer[ignored] = 0
        buffer[own, classes] = 0
