"""Asymmetric loss: "Asymmetric Loss For Multi-Label Classification", arXiv 2009.14119."""

from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from focal_det.losses.arguments import check_number
from focal_det.losses.binary import focal_term, sum_over_classes
from focal_det.losses.cls_loss import PointwiseClsLoss
from focal_det.registry import CLS_LOSS_REGISTRY


def asymmetric_loss_per_anchor(
    logits: Tensor, labels: Tensor, *, gamma_pos: float, gamma_neg: float, shift: float
) -> Tensor:
    """Focal loss with a focusing parameter for positives and one for negatives, whose probability is shifted down.

    Positives: -(1 - p)^gamma_pos log(p). Negatives: -p_m^gamma_neg log(1 - p_m) with p_m = max(p - shift, 0): negatives below the
    shift cost nothing.

    Args:
        logits: (..., K), any float dtype; computed in float32 or wider.
        labels: (...) int64 in {-1, 0..K}: -1 is ignored, K is background.
        gamma_pos, gamma_neg: focusing parameters, >= 0.
        shift: probability in [0, 1); the paper's m.

    Returns:
        (...) in nats, 0 where ignored.

    Raises:
        ValueError: a parameter out of range, shapes or labels that do not fit.
    """
    _check(gamma_pos, gamma_neg, shift)
    return sum_over_classes(
        logits,
        labels,
        lambda x, _: focal_term(-x, gamma_pos),
        lambda x: _shifted_term(x, gamma_neg, shift),
    )


@CLS_LOSS_REGISTRY.register()
class AsymmetricLoss(PointwiseClsLoss):
    """Asymmetric loss; see `asymmetric_loss_per_anchor`. With equal gammas and no shift it is the focal loss without alpha."""

    def __init__(
        self, *, gamma_pos: float = 0.0, gamma_neg: float = 4.0, shift: float = 0.05
    ) -> None:
        super().__init__()
        _check(gamma_pos, gamma_neg, shift)
        self.gamma_pos, self.gamma_neg, self.shift = gamma_pos, gamma_neg, shift

    def extra_repr(self) -> str:
        return f"gamma_pos={self.gamma_pos}, gamma_neg={self.gamma_neg}, shift={self.shift}"

    def per_anchor(self, logits: Tensor, labels: Tensor, iou: Optional[Tensor] = None) -> Tensor:
        return asymmetric_loss_per_anchor(
            logits, labels, gamma_pos=self.gamma_pos, gamma_neg=self.gamma_neg, shift=self.shift
        )


def _shifted_term(x: Tensor, gamma: float, shift: float) -> Tensor:
    """-p_m^gamma log(1 - p_m) of negatives with logit x."""
    if shift == 0:
        return focal_term(x, gamma)
    p, not_p = torch.exp(F.logsigmoid(x)), torch.exp(F.logsigmoid(-x))
    counts = ~(p <= shift)  # NaN counts, so that it shows in the loss
    p_m = torch.where(counts, p - shift, 0.5)
    # 1 - p_m = (1 - p) + shift, of which the more precise form depends on which of p and 1 - p is small.
    cross_entropy = torch.where(p < 0.5, -torch.log1p(-p_m), -torch.log(not_p + shift))
    return torch.where(counts, p_m**gamma * cross_entropy, 0.0)


def _check(gamma_pos: float, gamma_neg: float, shift: float) -> None:
    check_number("gamma_pos", gamma_pos, "[0, inf)")
    check_number("gamma_neg", gamma_neg, "[0, inf)")
    check_number("shift", shift, "[0, 1)")
