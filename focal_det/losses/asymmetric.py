"""Asymmetric loss: "Asymmetric Loss For Multi-Label Classification", arXiv 2009.14119."""

from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from .arguments import check_number
from .base import PointwiseClsLoss
from .per_anchor import focal_term, sum_over_classes


def asymmetric_loss_per_anchor(
    logits: Tensor,
    labels: Tensor,
    *,
    gamma_pos: float,
    gamma_neg: float,
    shift: float,
    detach_weight: bool = False,
) -> Tensor:
    """Focal loss with a focusing parameter for positives and one for negatives, shifted down.

    Positives: -(1 - p)^gamma_pos log(p). Negatives: -p_m^gamma_neg log(1 - p_m) with
    p_m = max(p - shift, 0): negatives below the shift cost nothing.

    Args:
        logits: (..., K), any float dtype; computed in float32 or wider.
        labels: (...) int64 in {-1, 0..K}: -1 is ignored, K is background.
        gamma_pos, gamma_neg: focusing parameters, >= 0.
        shift: probability in [0, 1); the paper's m.
        detach_weight: whether the powers are weights without a gradient. The paper's analysis of the
            gradient differentiates them (False). Its code has the other as an option
            (`disable_torch_grad_focal_loss`) and trains on COCO with it; its authors recommend to
            begin without it (Alibaba-MIIL/ASL, issue 31).

    Returns:
        (...) in nats, 0 where ignored.

    Raises:
        ValueError: a parameter out of range, shapes or labels that do not fit.
    """
    _check(gamma_pos, gamma_neg, shift)
    term = _weighted_term if detach_weight else focal_term

    def negative_term(x: Tensor) -> Tensor:
        if shift == 0:
            return term(x, gamma_neg)
        return _shifted_term(x, gamma_neg, shift, detach_weight)

    return sum_over_classes(logits, labels, lambda x, _: term(-x, gamma_pos), negative_term)


class AsymmetricLoss(PointwiseClsLoss):
    """Asymmetric loss; see `asymmetric_loss_per_anchor`.

    With equal gammas and no shift it is the focal loss without alpha.
    """

    def __init__(
        self,
        *,
        gamma_pos: float = 0.0,
        gamma_neg: float = 4.0,
        shift: float = 0.05,
        detach_weight: bool = False,
    ) -> None:
        super().__init__()
        _check(gamma_pos, gamma_neg, shift)
        self.gamma_pos, self.gamma_neg, self.shift = gamma_pos, gamma_neg, shift
        self.detach_weight = detach_weight

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self._get_args().items())

    def per_anchor(self, logits: Tensor, labels: Tensor, iou: Optional[Tensor] = None) -> Tensor:
        return asymmetric_loss_per_anchor(logits, labels, **self._get_args())

    def _get_args(self) -> dict[str, Any]:
        names = ("gamma_pos", "gamma_neg", "shift", "detach_weight")
        return {name: getattr(self, name) for name in names}


def _weighted_term(z: Tensor, gamma: float) -> Tensor:
    """The value of `focal_term` with the gradient of its cross entropy alone."""
    return torch.exp(gamma * F.logsigmoid(z.detach())) * focal_term(z, 0.0)


def _shifted_term(x: Tensor, gamma: float, shift: float, detach_weight: bool) -> Tensor:
    """-p_m^gamma log(1 - p_m) of negatives with logit x."""
    p, not_p = torch.exp(F.logsigmoid(x)), torch.exp(F.logsigmoid(-x))
    counts = ~(p <= shift)  # NaN counts, so that it shows in the loss
    p_m = torch.where(counts, p - shift, 0.5)
    # 1 - p_m = (1 - p) + shift, of which the more precise form depends on which of p and 1 - p is small.
    cross_entropy = torch.where(p < 0.5, -torch.log1p(-p_m), -torch.log(not_p + shift))
    weight = (p_m.detach() if detach_weight else p_m) ** gamma
    return torch.where(counts, weight * cross_entropy, 0.0)


def _check(gamma_pos: float, gamma_neg: float, shift: float) -> None:
    check_number("gamma_pos", gamma_pos, "[0, inf)")
    check_number("gamma_neg", gamma_neg, "[0, inf)")
    check_number("shift", shift, "[0, 1)")
