"""Quality focal loss: "Generalized Focal Loss", arXiv 2006.04388."""

from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from .arguments import check_number, check_tensor_range
from .base import PointwiseClsLoss
from .per_anchor import Weight, focal_term, get_kept, keep_with_exponent, sum_over_classes


def quality_focal_loss_per_anchor(
    logits: Tensor, labels: Tensor, iou: Tensor, *, beta: float
) -> Tensor:
    """|y - p|^beta CE(x, y) of each anchor, summed over its classes.

    For the anchor's own class, y is the IoU of the predicted box; for all others, it is 0. With an
    IoU of 1 everywhere, this is the focal loss.

    Args:
        logits, labels: see `focal_loss_from_labels`.
        iou: (...) in [0, 1], without gradient; read where the anchor has a class.
        beta: focusing parameter, >= 0; 0 is cross entropy.

    Returns:
        (...) in nats, 0 where ignored.

    Raises:
        ValueError: beta out of range, shapes or labels that do not fit.
    """
    check_number("beta", beta, "[0, inf)")
    check_tensor_range("iou", iou, 0, 1)

    def positive_term(x: Tensor, _: Tensor) -> Tensor:
        return quality_term(x, iou.unsqueeze(-1).to(x.dtype), beta)

    return sum_over_classes(logits, labels, positive_term, lambda x: focal_term(x, beta))


def quality_term(x: Tensor, y: Tensor, beta: Weight) -> Tensor:
    """|p - y|^beta CE(x, y) of logits x and targets y in [0, 1], eq. 2 of arXiv 2006.04388."""
    term: Tensor = _QualityTerm.apply(x, y, beta)
    return term


def quality_slope(x: Tensor, y: Tensor, beta: Weight) -> Tensor:
    """Derivative of `quality_term` by x, with d = p - y.

    sign(d) |d|^(beta - 1) (beta p (1 - p) CE + d^2), and 0 at d = 0.
    """
    d, cross_entropy = _compare(x, y)
    # Not 0, whose power is infinite for beta < 1; the sign makes the result 0.
    size = d.abs().clamp(min=torch.finfo(d.dtype).tiny)
    p_not_p = torch.exp(F.logsigmoid(x) + F.logsigmoid(-x))
    slope: Tensor = size ** (beta - 1) * (beta * p_not_p * cross_entropy + d * d)
    return torch.sign(d) * slope


class QualityFocalLoss(PointwiseClsLoss):
    """Quality focal loss; see `quality_focal_loss_per_anchor`.

    Its scores rank detections by the quality of their boxes, too.
    """

    needs = frozenset({"iou"})

    def __init__(self, *, beta: float = 2.0) -> None:
        super().__init__()
        check_number("beta", beta, "[0, inf)")
        self.beta = beta

    def extra_repr(self) -> str:
        return f"beta={self.beta}"

    def per_anchor(self, logits: Tensor, labels: Tensor, iou: Optional[Tensor] = None) -> Tensor:
        assert iou is not None  # `forward` has checked `needs`
        return quality_focal_loss_per_anchor(logits, labels, iou, beta=self.beta)


class _QualityTerm(torch.autograd.Function):
    """`quality_term`, without the NaN of the power's derivative at p = y."""

    # Lets torch.func.vmap through; all operations are elementwise.
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, y: Tensor, beta: Weight) -> Tensor:
        distance, cross_entropy = _compare(x, y)
        return distance.abs() ** beta * cross_entropy

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Weight], output: Tensor) -> None:
        keep_with_exponent(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad * quality_slope(*get_kept(ctx)), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Optional[Tensor]) -> Tensor:
        return tangent * quality_slope(*get_kept(ctx))


def _compare(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The distance p - y and the cross entropy."""
    log_p = F.logsigmoid(x)
    log_not_p = F.logsigmoid(-x)
    # (1 - y) - (1 - p) where that is the difference of the smaller numbers.
    distance = torch.where(x > 0, (1 - y) - torch.exp(log_not_p), torch.exp(log_p) - y)
    return distance, -(y * log_p + (1 - y) * log_not_p)
