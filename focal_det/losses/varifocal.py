"""Varifocal loss: "VarifocalNet", arXiv 2008.13367."""

from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from .arguments import check_number, check_tensor_range
from .base import PointwiseClsLoss
from .per_anchor import focal_term, sum_over_classes


def varifocal_loss_per_anchor(
    logits: Tensor, labels: Tensor, iou: Tensor, *, neg_weight: float, gamma: float
) -> Tensor:
    """Cross entropy weighted by quality for positives, focal loss for negatives.

    q CE(x, q) for an anchor's own class, with the quality q the IoU of the predicted box, and
    neg_weight p^gamma CE(x, 0) for all other classes. A positive whose prediction misses its box
    altogether, q = 0, counts as a negative.

    Args:
        logits, labels: see `focal_loss_from_labels`.
        iou: (...) in [0, 1], without gradient; read where the anchor has a class.
        neg_weight: weight of the negatives, >= 0; the paper's alpha.
        gamma: focusing parameter of the negatives, >= 0.

    Returns:
        (...) in nats, 0 where ignored.

    Raises:
        ValueError: neg_weight or gamma out of range, shapes or labels that do not fit.
    """
    _check(neg_weight, gamma)
    check_tensor_range("iou", iou, 0, 1)

    def positive_term(x: Tensor, _: Tensor) -> Tensor:
        q = iou.unsqueeze(-1).to(x.dtype)
        cross_entropy = -(q * F.logsigmoid(x) + (1 - q) * F.logsigmoid(-x))
        # The quality is the weight, too: with q = 0, a prediction that misses its box would cost
        # nothing.
        return torch.where(q > 0, q * cross_entropy, negative_term(x))

    def negative_term(x: Tensor) -> Tensor:
        return neg_weight * focal_term(x, gamma)

    return sum_over_classes(logits, labels, positive_term, negative_term)


class VarifocalLoss(PointwiseClsLoss):
    """Varifocal loss; see `varifocal_loss_per_anchor`.

    Its focusing factor is for negatives only; positives are weighted by their quality.
    """

    needs = frozenset({"iou"})

    def __init__(self, *, neg_weight: float = 0.75, gamma: float = 2.0) -> None:
        super().__init__()
        _check(neg_weight, gamma)
        self.neg_weight = neg_weight
        self.gamma = gamma

    def extra_repr(self) -> str:
        return f"neg_weight={self.neg_weight}, gamma={self.gamma}"

    def per_anchor(self, logits: Tensor, labels: Tensor, iou: Optional[Tensor] = None) -> Tensor:
        assert iou is not None  # `forward` has checked `needs`
        return varifocal_loss_per_anchor(
            logits, labels, iou, neg_weight=self.neg_weight, gamma=self.gamma
        )


def _check(neg_weight: float, gamma: float) -> None:
    check_number("neg_weight", neg_weight, "[0, inf)")
    check_number("gamma", gamma, "[0, inf)")
