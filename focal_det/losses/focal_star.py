"""FL*: the alternate form of the focal loss, appendix A of arXiv 1708.02002."""

from typing import Optional

from torch import Tensor

from . import kernels
from .arguments import check_alpha, check_logits_and_labels
from .base import PointwiseClsLoss
from .per_anchor import check_focal_star, focal_star_loss_per_anchor, get_sides


class FocalStarLoss(PointwiseClsLoss):
    """FL*; see `focal_star_loss_per_anchor`.

    The paper's table 3 has (gamma, beta) = (2, 1) and (4, 0).

    Args:
        alpha: see `focal_loss_from_labels`.
        gamma: steepness, > 0.
        beta: shift, any finite number.
    """

    def __init__(self, *, alpha: float = 0.25, gamma: float = 2.0, beta: float = 1.0) -> None:
        super().__init__()
        check_alpha(alpha)
        check_focal_star(gamma, beta)
        self.alpha = alpha
        self.gamma = gamma
        self.beta = beta

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, gamma={self.gamma}, beta={self.beta}"

    def per_anchor(self, logits: Tensor, labels: Tensor, iou: Optional[Tensor] = None) -> Tensor:
        return focal_star_loss_per_anchor(logits, labels, **self._get_args())

    def per_image(self, logits: Tensor, labels: Tensor, iou: Optional[Tensor] = None) -> Tensor:
        if not kernels.is_supported(logits):
            return super().per_image(logits, labels, iou)
        # The plain path checks by itself, the fast paths do not.
        check_logits_and_labels(logits, labels, logits.shape[-1])
        return kernels.focal_sums(logits, labels, **self._get_args())

    def _get_args(self) -> dict[str, float]:
        pos_weight, neg_weight = get_sides(self.alpha)
        return {
            "pos_weight": pos_weight,
            "neg_weight": neg_weight,
            "gamma": self.gamma,
            "beta": self.beta,
        }
