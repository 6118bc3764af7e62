"""FL*: the alternate form of the focal loss, appendix A of arXiv 1708.02002."""

from typing import Optional

from torch import Tensor
from torch.nn import functional as F

from focal_det.losses import kernels
from focal_det.losses.arguments import check_alpha, check_logits_and_labels, check_number
from focal_det.losses.binary import get_sides, sum_over_classes
from focal_det.losses.cls_loss import PointwiseClsLoss
from focal_det.registry import CLS_LOSS_REGISTRY


def focal_star_loss_per_anchor(
    logits: Tensor,
    labels: Tensor,
    *,
    pos_weight: float,
    neg_weight: float,
    gamma: float,
    beta: float,
) -> Tensor:
    """FL* of each anchor, summed over its classes: -weight log(p*_t) / gamma with p*_t = sigmoid(gamma x_t + beta).

    Args:
        logits: (..., K), any float dtype; computed in float32 or wider.
        labels: (...) int64 in {-1, 0..K}: -1 is ignored, K is background.
        pos_weight, neg_weight: factors of the terms of the own class and of all others.
        gamma: steepness, > 0. gamma = 1 with beta = 0 is cross entropy.
        beta: shift, any finite number.

    Returns:
        (...) in nats, 0 where ignored.

    Raises:
        ValueError: gamma or beta out of range, shapes or labels that do not fit.
    """
    _check(gamma, beta)

    def term(x_t: Tensor) -> Tensor:
        return -F.logsigmoid(gamma * x_t + beta) / gamma

    return sum_over_classes(
        logits, labels, lambda x, _: pos_weight * term(x), lambda x: neg_weight * term(-x)
    )


@CLS_LOSS_REGISTRY.register()
class FocalStarLoss(PointwiseClsLoss):
    """FL*; see `focal_star_loss_per_anchor`. The paper's table 3 has (gamma, beta) = (2, 1) and (4, 0).

    Args:
        alpha: weight of the positive class in [0, 1]; -1 for no weighting.
        gamma: steepness, > 0.
        beta: shift, any finite number.
    """

    def __init__(self, *, alpha: float = 0.25, gamma: float = 2.0, beta: float = 1.0) -> None:
        super().__init__()
        check_alpha(alpha)
        _check(gamma, beta)
        self.alpha, self.gamma, self.beta = alpha, gamma, beta

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, gamma={self.gamma}, beta={self.beta}"

    def per_anchor(self, logits: Tensor, labels: Tensor, iou: Optional[Tensor] = None) -> Tensor:
        return focal_star_loss_per_anchor(logits, labels, **self._get_args())

    def per_image(self, logits: Tensor, labels: Tensor, iou: Optional[Tensor] = None) -> Tensor:
        if not kernels.is_supported(logits):
            return super().per_image(logits, labels, iou)
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


def _check(gamma: float, beta: float) -> None:
    check_number("gamma", gamma, "(0, inf)")
    check_number("beta", beta, "(-inf, inf)")
