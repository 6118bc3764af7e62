"""Asymmetric loss: "Asymmetric Loss For Multi-Label Classification", arXiv 2009.14119."""

from collections.abc import Callable
from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from .arguments import check_number
from .base import PointwiseClsLoss
from .per_anchor import focal_term, sum_over_classes, weighted_term


def asymmetric_loss_per_anchor(
    logits: Tensor,
    labels: Tensor,
    *,
    gamma_pos: float,
    gamma_neg: float,
    shift: float,
    detach_weight: bool = False,
) -> Tensor:
    """Focal loss with separate gammas for positives and negatives, and a shift of negatives.

    Positives: -(1 - p)^gamma_pos log(p). Negatives: -p_m^gamma_neg log(1 - p_m) with
    p_m = max(p - shift, 0): negatives below the shift cost nothing.

    Args:
        logits, labels: see `focal_loss_from_labels`.
        gamma_pos, gamma_neg: focusing parameters, >= 0.
        shift: probability in [0, 1); the paper's m.
        detach_weight: whether the powers are weights without a gradient. The paper differentiates
            them (False). Its code can detach them (`disable_torch_grad_focal_loss`), and does on
            COCO; its authors recommend starting without that (Alibaba-MIIL/ASL, issue 31).

    Returns:
        (...) in nats, 0 where ignored.

    Raises:
        ValueError: a parameter out of range, shapes or labels that do not fit.
    """
    _check(gamma_pos, gamma_neg, shift)
    term: Callable[[Tensor, float], Tensor] = focal_term
    if detach_weight:
        term = weighted_term

    def negative_term(x: Tensor) -> Tensor:
        # focal_term keeps one tensor for backward; autograd keeps several for _shifted_term.
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
        self.gamma_pos = gamma_pos
        self.gamma_neg = gamma_neg
        self.shift = shift
        self.detach_weight = detach_weight

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self._get_args().items())

    def per_anchor(self, logits: Tensor, labels: Tensor, iou: Optional[Tensor] = None) -> Tensor:
        return asymmetric_loss_per_anchor(logits, labels, **self._get_args())

    def _get_args(self) -> dict[str, Any]:
        names = ("gamma_pos", "gamma_neg", "shift", "detach_weight")
        return {name: getattr(self, name) for name in names}


def _shifted_term(x: Tensor, gamma: float, shift: float, detach_weight: bool) -> Tensor:
    """-p_m^gamma log(1 - p_m) of negatives with logit x."""
    p = torch.exp(F.logsigmoid(x))
    not_p = torch.exp(F.logsigmoid(-x))
    counts = ~(p <= shift)  # not `p > shift`: NaN counts, so that it shows in the loss
    # 0.5 is a placeholder where logarithm and power have finite gradients; the last line drops it.
    p_m = torch.where(counts, p - shift, 0.5)
    # 1 - p_m = (1 - p) + shift; each form is precise where its own term, p or 1 - p, is small.
    cross_entropy = torch.where(p < 0.5, -torch.log1p(-p_m), -torch.log(not_p + shift))
    base = p_m
    if detach_weight:
        base = p_m.detach()
    return torch.where(counts, base**gamma * cross_entropy, 0.0)


def _check(gamma_pos: float, gamma_neg: float, shift: float) -> None:
    check_number("gamma_pos", gamma_pos, "[0, inf)")
    check_number("gamma_neg", gamma_neg, "[0, inf)")
    check_number("shift", shift, "[0, 1)")
