"""Focal loss: equations 4 and 5 of "Focal Loss for Dense Object Detection", arXiv 1708.02002."""

from collections.abc import Callable, Sequence
from typing import Any, Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from . import kernels
from .arguments import (
    check_alpha_and_gamma,
    check_length,
    check_logits_and_labels,
    check_per_class,
    check_tensor_range,
    to_float,
)
from .base import PointwiseClsLoss
from .per_anchor import Weight, focal_loss_per_anchor, get_sides, keep_for_derivatives

_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda loss: loss,
    "mean": Tensor.mean,
    "sum": Tensor.sum,
}


def sigmoid_focal_loss(
    inputs: Tensor, targets: Tensor, alpha: float = -1, gamma: float = 2, reduction: str = "none"
) -> Tensor:
    """Focal loss of independent binary targets, eq. 5 of arXiv 1708.02002.

    Takes the place of the function of this name in fvcore and torchvision. The defaults are
    fvcore's; torchvision's default for alpha is 0.25.

    Args:
        inputs: logits of any shape and float dtype; float16 and bfloat16 are computed in float32.
        targets: same shape, in [0, 1]; soft ones interpolate p_t and alpha_t linearly, as in
            fvcore.
        alpha, gamma: see `focal_loss_from_labels`.
        reduction: "none", "mean" or "sum".

    Returns:
        Loss in nats: the shape of `inputs` for "none", else (); at least float32.

    Raises:
        ValueError: shapes differ; logits are not floating point; alpha, gamma or reduction is out
            of range; targets require a gradient; or, for CPU tensors, a target is outside [0, 1].
    """
    check_alpha_and_gamma(alpha, gamma)
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(_REDUCTIONS)}, got {reduction!r}")
    if inputs.shape != targets.shape:
        expected = tuple(inputs.shape)
        raise ValueError(
            f"targets must have the shape of inputs {expected}, got {tuple(targets.shape)}"
        )
    # The backward of the term has no gradient for targets; it would be silently missing.
    if targets.requires_grad:
        raise ValueError("targets must not require a gradient; pass targets.detach()")
    inputs = to_float(inputs)
    targets = targets.to(inputs.dtype)
    check_tensor_range("targets", targets, 0, 1)
    loss: Tensor = _SoftFocalTerm.apply(inputs, targets, gamma)
    if alpha >= 0:
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return _REDUCTIONS[reduction](loss)


def focal_loss_from_labels(logits: Tensor, labels: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Sum of the alpha-balanced focal loss, eq. 5 of arXiv 1708.02002.

    The other losses of K one-against-all classifiers take the same logits, labels and alpha.

    Args:
        logits: (..., K) scores before the sigmoid, any float dtype; float16 and bfloat16 are
            computed in float32.
        labels: (...) int64 in {-1, 0..K}: -1 is ignored, K is background.
        alpha: weight of the positive class, in [0, 1]; the negative class has 1 - alpha. -1 for no
            weighting.
        gamma: focusing parameter, >= 0; 0 is cross entropy.

    Returns:
        () sum in nats, at least float32.

    Raises:
        ValueError: shapes that do not fit, logits that are not floating point, alpha or gamma out
            of range; for CPU tensors also a label outside {-1, 0..K}.
    """
    check_alpha_and_gamma(alpha, gamma)
    check_logits_and_labels(logits, labels, logits.shape[-1])
    # As one image, because the fast paths sum per image.
    return _sum_per_image(
        logits.reshape(1, -1, logits.shape[-1]), labels.reshape(1, -1), alpha, gamma
    )[0]


class FocalLoss(PointwiseClsLoss):
    """Alpha-balanced focal loss, eq. 5 of arXiv 1708.02002; cross entropy for gamma = 0.

    Args:
        alpha, gamma: see `focal_loss_from_labels`.
        alpha_per_class: one weight per class, in [0, 1], instead of `alpha`; the positives of
            class k have the weight alpha_k, its negatives 1 - alpha_k.
        gamma_per_class: one focusing parameter per class instead of `gamma`.
    """

    alpha_per_class: Optional[Tensor]
    gamma_per_class: Optional[Tensor]

    def __init__(
        self,
        *,
        alpha: float = 0.25,
        gamma: float = 2.0,
        alpha_per_class: Sequence[float] = (),
        gamma_per_class: Sequence[float] = (),
    ) -> None:
        super().__init__()
        check_alpha_and_gamma(alpha, gamma)
        check_per_class("alpha_per_class", alpha_per_class, "[0, 1]")
        check_per_class("gamma_per_class", gamma_per_class, "[0, inf)")
        self.alpha = alpha
        self.gamma = gamma
        # Not persistent, so that the state_dict has only Detectron2's names.
        self.register_buffer("alpha_per_class", _to_tensor(alpha_per_class), persistent=False)
        self.register_buffer("gamma_per_class", _to_tensor(gamma_per_class), persistent=False)

    def extra_repr(self) -> str:
        parts = [f"alpha={self.alpha}", f"gamma={self.gamma}"]
        for name, values in self.named_buffers():
            parts.append(f"{name}={[round(x, 4) for x in values.tolist()]}")
        return ", ".join(parts)

    def num_outputs(self, num_classes: int) -> int:
        # A list with one value per class fits only a detector with that many classes.
        for name, values in self.named_buffers():
            check_length(name, values, num_classes)
        return num_classes

    def per_image(self, logits: Tensor, labels: Tensor, iou: Optional[Tensor] = None) -> Tensor:
        # The fast paths take one alpha and one gamma for all classes.
        if self.alpha_per_class is not None or self.gamma_per_class is not None:
            return super().per_image(logits, labels, iou)
        check_logits_and_labels(logits, labels, logits.shape[-1])
        return _sum_per_image(logits, labels, self.alpha, self.gamma)

    def per_anchor(self, logits: Tensor, labels: Tensor, iou: Optional[Tensor] = None) -> Tensor:
        alpha: Weight = self.alpha
        if self.alpha_per_class is not None:
            alpha = self.alpha_per_class
        gamma: Weight = self.gamma
        if self.gamma_per_class is not None:
            gamma = self.gamma_per_class
        pos_weight, neg_weight = get_sides(alpha)
        return focal_loss_per_anchor(
            logits, labels, pos_weight=pos_weight, neg_weight=neg_weight, gamma=gamma
        )


def _sum_per_image(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """(N, R, K) logits and (N, R) labels to (N,) sums, by a fast path if there is one."""
    pos_weight, neg_weight = get_sides(alpha)
    if kernels.is_supported(logits):
        return kernels.focal_sums(
            logits, labels, pos_weight=pos_weight, neg_weight=neg_weight, gamma=gamma
        )
    return focal_loss_per_anchor(
        logits, labels, pos_weight=pos_weight, neg_weight=neg_weight, gamma=gamma
    ).sum(dim=1)


def _to_tensor(values: Sequence[float]) -> Optional[Tensor]:
    if len(values) == 0:
        return None
    return torch.tensor(values, dtype=torch.float32)


class _SoftFocalTerm(torch.autograd.Function):
    """(1 - p_t)^gamma CE(x, t) for t in [0, 1], with 1 - p_t = p (1 - t) + (1 - p) t."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, t: Tensor, gamma: float) -> Tensor:
        _, _, log_not_p_t, cross_entropy = _SoftFocalTerm._parts(x, t)
        return torch.exp(gamma * log_not_p_t) * cross_entropy

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float], output: Tensor) -> None:
        x, t, ctx.gamma = inputs
        keep_for_derivatives(ctx, x, t)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad * _SoftFocalTerm._slope(ctx), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Optional[Tensor]) -> Tensor:
        return tangent * _SoftFocalTerm._slope(ctx)

    @staticmethod
    def _slope(ctx: Any) -> Tensor:
        x, t = ctx.saved_tensors
        log_p, log_not_p, log_not_p_t, cross_entropy = _SoftFocalTerm._parts(x, t)
        # d log(1 - p_t) / dx = p (1 - p) (1 - 2 t) / (1 - p_t), and
        # d CE / dx = p - t = (1 - t) p - t (1 - p), the form without cancellation.
        slope = ctx.gamma * (1 - 2 * t) * torch.exp(log_p + log_not_p - log_not_p_t) * cross_entropy
        slope = slope + (1 - t) * torch.exp(log_p) - t * torch.exp(log_not_p)
        weighted: Tensor = torch.exp(ctx.gamma * log_not_p_t) * slope
        return weighted

    @staticmethod
    def _parts(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logarithms of p, 1 - p and 1 - p_t, and the cross entropy."""
        log_p = F.logsigmoid(x)
        log_not_p = F.logsigmoid(-x)
        # 1 - p_t = p (1 - t) + (1 - p) t as a sum of logarithms, finite where a product underflows.
        log_not_p_t = torch.logaddexp(log_p + torch.log1p(-t), log_not_p + torch.log(t))
        return log_p, log_not_p, log_not_p_t, -(t * log_p + (1 - t) * log_not_p)
