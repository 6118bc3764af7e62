"""Focal loss and FL* on the CPU: plain torch on pieces of the logits that stay in the cache.

Nearly all terms are negatives; a piece of them goes through a dozen operations into buffers of its size. The entries of positives
and the rows of ignored anchors are left out of that by a weight of zero, and positives are computed apart: nothing is subtracted
from a sum, so no large term leaves its rounding error behind.
"""

from functools import partial
from typing import Callable, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from focal_det.losses.binary import focal_slope, focal_term

# Elements of a piece for each thread: its three float32 buffers are 400 kB.
_PIECE = 32768

# From a piece's logits, buffers of its shape, what puts zeros into the weights, and where the derivatives go, to the sum.
Negatives = Callable[[Tensor, list[Tensor], Callable[[Tensor], None], Optional[Tensor]], Tensor]
# From logits (P,) of positives to losses and derivatives.
Positives = Callable[[Tensor], tuple[Tensor, Tensor]]


def focal_sums_and_grad(
    logits: Tensor, labels: Tensor, *, pos_weight: float, neg_weight: float, gamma: float, with_grad: bool
) -> tuple[Tensor, Optional[Tensor]]:
    """Sums of the focal loss per image, and their derivatives; see `focal_det.losses.kernels.focal_sums`.

    Returns:
        (N,) float32; (N, R, K) in the dtype of the logits, or None without `with_grad`.
    """

    def negatives(x: Tensor, buffers: list[Tensor], skip: Callable[[Tensor], None], out: Optional[Tensor]) -> Tensor:
        p, weight, cross_entropy = buffers
        torch.sigmoid(x, out=p)
        torch._C._nn.softplus(x, out=cross_entropy)
        _power(p, gamma, out=weight)
        weight.mul_(neg_weight)
        skip(weight)
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
    logits: Tensor, labels: Tensor, *, pos_weight: float, neg_weight: float, gamma: float, beta: float, with_grad: bool
) -> tuple[Tensor, Optional[Tensor]]:
    """Sums of FL* per image, and their derivatives; see `focal_sums_and_grad`."""

    def negatives(x: Tensor, buffers: list[Tensor], skip: Callable[[Tensor], None], out: Optional[Tensor]) -> Tensor:
        z, weight, cross_entropy = buffers
        torch.mul(x, gamma, out=z)
        z.sub_(beta)
        torch._C._nn.softplus(z, out=cross_entropy)
        weight.fill_(neg_weight)
        skip(weight)
        total = torch.dot(weight.flatten(), cross_entropy.flatten()) / gamma
        if out is not None:
            torch.mul(z.sigmoid_(), weight, out=out)
        return total

    def positives(x: Tensor) -> tuple[Tensor, Tensor]:
        z = -(gamma * x + beta)
        return pos_weight * F.softplus(z) / gamma, -pos_weight * torch.sigmoid(z)

    return _run(logits, labels, negatives, positives, with_grad)


def _power(p: Tensor, gamma: float, *, out: Tensor) -> None:
    """p^gamma for p in [0, 1]; products and a square root where they do, as exp and log take most of the time."""
    whole, rest = divmod(gamma, 1)
    if rest not in (0, 0.5) or whole > 8:
        torch.log(p, out=out)
        out.mul_(gamma).exp_()
        return
    if rest:
        torch.sqrt(p, out=out)
    else:
        out.fill_(1)
    for _ in range(int(whole)):
        out.mul_(p)


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


def _sum_negatives(logits: Tensor, labels: Tensor, negatives: Negatives, grad: Optional[Tensor]) -> Tensor:
    """() sum of the negative terms of an image, logits (R, K), and their derivatives into `grad`."""
    num_anchors, num_classes = logits.shape
    num_rows = max(1, _PIECE * torch.get_num_threads() // num_classes)
    is_float32 = logits.dtype == torch.float32
    buffers = [torch.empty(min(num_rows, num_anchors), num_classes) for _ in range(3 if is_float32 else 5)]
    skipped = torch.nonzero(labels < num_classes)[:, 0]  # ignored, or with a class
    starts = torch.arange(0, num_anchors + num_rows, num_rows)
    bounds = torch.searchsorted(skipped, starts).tolist()
    totals = []
    for index, start in enumerate(starts[:-1].tolist()):
        piece = logits[start : start + num_rows]
        rows = skipped[bounds[index] : bounds[index + 1]]
        views = [x[: len(piece)] for x in buffers]
        x = piece if is_float32 else views[3].copy_(piece)
        out = None if grad is None else grad[start : start + num_rows]
        target = out if out is None or is_float32 else views[4]
        totals.append(negatives(x, views[:3], partial(_zero_out, rows - start, labels[rows]), target))
        if target is not out:
            out.copy_(target)
    return torch.stack(totals).double().sum().float()


def _zero_out(rows: Tensor, labels: Tensor, weight: Tensor) -> None:
    """Put zeros at the own class of positives and in the rows of ignored anchors."""
    is_ignored = labels < 0
    weight[rows[is_ignored]] = 0
    weight[rows[~is_ignored], labels[~is_ignored]] = 0
