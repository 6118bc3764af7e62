"""Matchability-aware loss: "DEIM: DETR with Improved Matching", arXiv 2412.04234."""

from collections.abc import Callable
from typing import Optional

from torch import Tensor
from torch.nn import functional as F

from .arguments import check_number, check_tensor_range
from .base import PointwiseClsLoss
from .per_anchor import focal_term, sum_over_classes, weighted_term


def matchability_aware_loss_per_anchor(
    logits: Tensor,
    labels: Tensor,
    iou: Tensor,
    *,
    gamma: float,
    neg_weight: float,
    detach_weight: bool = False,
) -> Tensor:
    """Cross entropy towards a power of the quality for positives, focal loss for negatives.

    CE(x, q^gamma) for an anchor's own class, with the quality q the IoU of the predicted box, and
    neg_weight p^gamma CE(x, 0) for all other classes. Unlike in varifocal loss, the quality is not
    a weight, so a confident prediction whose box fits badly costs more here.

    Args:
        logits, labels: see `focal_loss_from_labels`.
        iou: (...) in [0, 1], without gradient; read where the anchor has a class.
        gamma: power of the quality, and focusing parameter of the negatives, >= 0.
        neg_weight: weight of the negatives, >= 0; the paper has none (1).
        detach_weight: whether p^gamma is a weight without a gradient, as in the authors' code. In
            the paper's equation it is differentiated, too (False).

    Returns:
        (...) in nats, 0 where ignored.

    Raises:
        ValueError: gamma or neg_weight out of range, shapes or labels that do not fit.
    """
    _check(gamma, neg_weight)
    check_tensor_range("iou", iou, 0, 1)
    term: Callable[[Tensor, float], Tensor] = focal_term
    if detach_weight:
        term = weighted_term

    def positive_term(x: Tensor, _: Tensor) -> Tensor:
        target = iou.unsqueeze(-1).to(x.dtype) ** gamma
        return -(target * F.logsigmoid(x) + (1 - target) * F.logsigmoid(-x))

    return sum_over_classes(logits, labels, positive_term, lambda x: neg_weight * term(x, gamma))


class MatchabilityAwareLoss(PointwiseClsLoss):
    """Matchability-aware loss; see `matchability_aware_loss_per_anchor`.

    Its scores rank detections by the quality of their boxes, too, and positives with a bad box are
    trained with as much weight as others.
    """

    needs = frozenset({"iou"})

    def __init__(
        self, *, gamma: float = 1.5, neg_weight: float = 1.0, detach_weight: bool = False
    ) -> None:
        super().__init__()
        _check(gamma, neg_weight)
        self.gamma = gamma
        self.neg_weight = neg_weight
        self.detach_weight = detach_weight

    def extra_repr(self) -> str:
        rest = f"neg_weight={self.neg_weight}, detach_weight={self.detach_weight}"
        return f"gamma={self.gamma}, {rest}"

    def per_anchor(self, logits: Tensor, labels: Tensor, iou: Optional[Tensor] = None) -> Tensor:
        assert iou is not None  # `forward` has checked `needs`
        return matchability_aware_loss_per_anchor(
            logits,
            labels,
            iou,
            gamma=self.gamma,
            neg_weight=self.neg_weight,
            detach_weight=self.detach_weight,
        )


def _check(gamma: float, neg_weight: float) -> None:
    check_number("gamma", gamma, "[0, inf)")
    check_number("neg_weight", neg_weight, "[0, inf)")
