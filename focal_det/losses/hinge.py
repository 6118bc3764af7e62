"""Hinge loss on the probability of the right answer, section 5.1 of arXiv 1708.02002.

The paper tried it and found it unstable; it is here to complete the paper's comparison.
"""

from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from .arguments import check_alpha, check_number
from .base import PointwiseClsLoss
from .per_anchor import get_sides, sum_over_classes


def hinge_loss_per_anchor(
    logits: Tensor, labels: Tensor, *, alpha: float, threshold: float
) -> Tensor:
    """alpha_t max(0, threshold - p_t) of each anchor, summed over its classes.

    Right answers with a probability of at least `threshold` cost nothing.

    Args:
        logits, labels, alpha: see `focal_loss_from_labels`.
        threshold: on p_t, in (0, 1].

    Returns:
        (...) without unit, 0 where ignored.

    Raises:
        ValueError: alpha or threshold out of range, shapes or labels that do not fit.
    """
    check_alpha(alpha)
    check_number("threshold", threshold, "(0, 1]")
    pos_weight, neg_weight = get_sides(alpha)

    def term(z: Tensor) -> Tensor:
        # threshold - p_t, computed as (1 - p_t) - (1 - threshold) because exp(logsigmoid) has an
        # exact gradient at either end.
        return torch.relu(torch.exp(F.logsigmoid(z)) - (1 - threshold))

    return sum_over_classes(
        logits, labels, lambda x, _: pos_weight * term(-x), lambda x: neg_weight * term(x)
    )


class HingeLoss(PointwiseClsLoss):
    """Hinge loss on p_t; see `hinge_loss_per_anchor`. Not recommended: training is unstable."""

    def __init__(self, *, alpha: float = 0.25, threshold: float = 0.9) -> None:
        super().__init__()
        check_alpha(alpha)
        check_number("threshold", threshold, "(0, 1]")
        self.alpha = alpha
        self.threshold = threshold

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, threshold={self.threshold}"

    def per_anchor(self, logits: Tensor, labels: Tensor, iou: Optional[Tensor] = None) -> Tensor:
        return hinge_loss_per_anchor(logits, labels, alpha=self.alpha, threshold=self.threshold)
