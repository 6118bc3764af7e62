"""Poly-1 of the focal loss: "PolyLoss", arXiv 2204.12511."""

from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from .arguments import check_alpha_and_gamma, check_number
from .base import PointwiseClsLoss
from .per_anchor import get_sides, sum_over_classes


def poly_focal_loss_per_anchor(
    logits: Tensor, labels: Tensor, *, alpha: float, gamma: float, epsilon: float
) -> Tensor:
    """Focal loss with another first coefficient in its expansion, summed over classes.

    alpha_t ((1 - p_t)^gamma (-log(p_t)) + epsilon (1 - p_t)^(gamma + 1)).

    Args:
        logits, labels, alpha, gamma: see `focal_loss_from_labels`.
        epsilon: added to the first coefficient of the expansion in (1 - p_t), >= -1; 0 is the focal
            loss. Below -1, a right answer would cost more than a slightly wrong one.

    Returns:
        (...) in nats, 0 where ignored.

    Raises:
        ValueError: alpha, gamma or epsilon out of range, shapes or labels that do not fit.
    """
    _check(alpha, gamma, epsilon)
    pos_weight, neg_weight = get_sides(alpha)

    def term(z: Tensor) -> Tensor:
        log_p_z = F.logsigmoid(z)
        # The first order stands apart, so that epsilon = -1 removes it without rounding.
        first_order = (1 + epsilon) * torch.exp(log_p_z)
        return torch.exp(gamma * log_p_z) * (first_order + _higher_orders(z))

    return sum_over_classes(
        logits, labels, lambda x, _: pos_weight * term(-x), lambda x: neg_weight * term(x)
    )


class PolyFocalLoss(PointwiseClsLoss):
    """Focal loss with another first coefficient; see `poly_focal_loss_per_anchor`."""

    def __init__(self, *, alpha: float = 0.25, gamma: float = 2.0, epsilon: float = 1.0) -> None:
        super().__init__()
        _check(alpha, gamma, epsilon)
        self.alpha = alpha
        self.gamma = gamma
        self.epsilon = epsilon

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, gamma={self.gamma}, epsilon={self.epsilon}"

    def per_anchor(self, logits: Tensor, labels: Tensor, iou: Optional[Tensor] = None) -> Tensor:
        return poly_focal_loss_per_anchor(
            logits, labels, alpha=self.alpha, gamma=self.gamma, epsilon=self.epsilon
        )


def _higher_orders(z: Tensor) -> Tensor:
    """-log(p_t) - q = q^2/2 + q^3/3 + ... with q = sigmoid(z) = 1 - p_t."""
    q = torch.exp(F.logsigmoid(z))
    # The difference cancels for small q, so there the series is summed, to the precision of q.
    num_terms = 20
    if q.dtype == torch.float32:
        num_terms = 10
    small = q.clamp(max=0.1)
    series = torch.zeros_like(q)
    for n in range(num_terms, 1, -1):
        series = (series + 1 / n) * small
    return torch.where(q < 0.1, series * small, -F.logsigmoid(-z) - q)


def _check(alpha: float, gamma: float, epsilon: float) -> None:
    check_alpha_and_gamma(alpha, gamma)
    check_number("epsilon", epsilon, "[-1, inf)")
