"""Focal loss: equations 4 and 5 of "Focal Loss for Dense Object Detection", arXiv 1708.02002.

With p_t the probability of the right answer, FL = -alpha_t (1 - p_t)^gamma log(p_t). Here (1 - p_t)^gamma is
exp(gamma * log(1 - p_t)) with the logarithm taken from the logit, and the derivative is written in closed form, so that both are
finite and precise at every finite logit for every gamma >= 0; differentiating the textbook form gives NaN at saturated logits
for 0 < gamma < 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from focal_det.losses.cls_loss import ClsLoss
from focal_det.registry import CLS_LOSS_REGISTRY
from focal_det.targets import DenseTargets

_REDUCTIONS = {"none": lambda loss: loss, "mean": Tensor.mean, "sum": Tensor.sum}


def sigmoid_focal_loss(inputs: Tensor, targets: Tensor, alpha: float = -1, gamma: float = 2, reduction: str = "none") -> Tensor:
    """Focal loss of independent binary targets; takes the place of the function of this name in fvcore and torchvision.

    The defaults are fvcore's; torchvision's default for alpha is 0.25.

    Args:
        inputs: logits of any shape and float dtype; float16 and bfloat16 are computed in float32.
        targets: same shape, in [0, 1]; soft targets interpolate p_t and alpha_t linearly, as in fvcore.
        alpha: weight of the positive class in [0, 1]; -1 for no weighting.
        gamma: focusing parameter, >= 0; 0 is cross entropy.
        reduction: "none", "mean" or "sum".

    Returns:
        Loss in nats: the shape of `inputs` for "none", else (); at least float32.

    Raises:
        ValueError: shapes differ, logits are not floating point, alpha, gamma or reduction out of range, targets that require a
            gradient; for CPU tensors also a target outside [0, 1].
    """
    _check_alpha_gamma(alpha, gamma)
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(_REDUCTIONS)}, got {reduction!r}")
    if inputs.shape != targets.shape:
        raise ValueError(f"targets must have the shape of inputs {tuple(inputs.shape)}, got {tuple(targets.shape)}")
    if targets.requires_grad:
        raise ValueError("targets must not require a gradient; pass targets.detach()")
    inputs = _to_float(inputs)
    targets = targets.to(inputs.dtype)
    _check_range("targets", targets, 0, 1)
    loss = _SoftFocalTerm.apply(inputs, targets, gamma)
    if alpha >= 0:
        loss = (alpha * targets + (1 - alpha) * (1 - targets)) * loss
    return _REDUCTIONS[reduction](loss)


def focal_loss_from_labels(logits: Tensor, labels: Tensor, *, alpha: float, gamma: float) -> Tensor:
    """Sum of the alpha-balanced focal loss of K one-against-all classifiers, eq. 5 of arXiv 1708.02002.

    Args:
        logits: (..., K) scores before the sigmoid; any float dtype, float16 and bfloat16 are computed in float32.
        labels: (...) int64 in {-1, 0..K}: -1 is ignored, K is background.
        alpha: weight of the positive class in [0, 1]; -1 for no weighting.
        gamma: focusing parameter, >= 0; 0 is cross entropy.

    Returns:
        () sum in nats, at least float32.

    Raises:
        ValueError: shapes do not fit, logits are not floating point, alpha or gamma out of range; for CPU tensors also a label
            outside {-1, 0..K}.
    """
    _check_alpha_gamma(alpha, gamma)
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"labels must have shape {tuple(logits.shape[:-1])}, got {tuple(labels.shape)}")
    _check_range("labels", labels, -1, logits.shape[-1])
    return _focal_loss_per_anchor(logits, labels, alpha, gamma).sum()


@CLS_LOSS_REGISTRY.register()
class FocalLoss(ClsLoss):
    """Cross entropy, alpha-balanced cross entropy, focal loss and alpha-balanced focal loss (eq. 5 of arXiv 1708.02002).

    Args:
        alpha: weight of the positive class in [0, 1]; -1 for no weighting.
        gamma: focusing parameter, >= 0; 0 is cross entropy.
    """

    def __init__(self, *, alpha: float = 0.25, gamma: float = 2.0) -> None:
        super().__init__()
        _check_alpha_gamma(alpha, gamma)
        self.alpha = alpha
        self.gamma = gamma

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, gamma={self.gamma}"

    def forward(self, logits: Sequence[Tensor], targets: DenseTargets) -> Tensor:
        labels = targets.gt_labels.split([x.shape[1] for x in logits], dim=1)
        per_level = [_focal_loss_per_anchor(x, y, self.alpha, self.gamma).sum(dim=1) for x, y in zip(logits, labels)]
        return torch.stack(per_level).sum(dim=0)


def _focal_loss_per_anchor(logits: Tensor, labels: Tensor, alpha: float, gamma: float) -> Tensor:
    """(..., K) logits and (...) labels to (...) sums over classes; 0 where ignored."""
    num_classes = logits.shape[-1]
    logits = _to_float(logits)
    pos_weight, neg_weight = (alpha, 1 - alpha) if alpha >= 0 else (1.0, 1.0)
    terms = neg_weight * _FocalTerm.apply(logits, gamma)
    # One entry per anchor is the class itself; where the anchor has none, the entry is written back as it was.
    pos_mask = (labels >= 0) & (labels < num_classes)
    class_idxs = labels.clamp(0, num_classes - 1).unsqueeze(-1)
    positive_term = pos_weight * _FocalTerm.apply(-logits.gather(-1, class_idxs), gamma)
    entry = torch.where(pos_mask.unsqueeze(-1), positive_term, terms.gather(-1, class_idxs))
    per_anchor = terms.scatter(-1, class_idxs, entry).sum(dim=-1)
    return torch.where(labels >= 0, per_anchor, 0.0)


class _FocalTerm(torch.autograd.Function):
    """-(1 - p_t)^gamma log(p_t) of z = -x_t, the logit of the wrong answer: p_z^gamma softplus(z), with p_z = 1 - p_t."""

    @staticmethod
    def forward(ctx, z: Tensor, gamma: float) -> Tensor:
        ctx.save_for_backward(z)
        ctx.gamma = gamma
        return torch.exp(gamma * F.logsigmoid(z)) * -F.logsigmoid(-z)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        log_p_z, log_p_t = F.logsigmoid(z), F.logsigmoid(-z)
        slope = torch.exp(log_p_z) - ctx.gamma * torch.exp(log_p_t) * log_p_t
        return grad * torch.exp(ctx.gamma * log_p_z) * slope, None


class _SoftFocalTerm(torch.autograd.Function):
    """(1 - p_t)^gamma CE(x, t) for t in [0, 1], with 1 - p_t = p (1 - t) + (1 - p) t."""

    @staticmethod
    def forward(ctx, x: Tensor, t: Tensor, gamma: float) -> Tensor:
        ctx.save_for_backward(x, t)
        ctx.gamma = gamma
        _, _, log_not_p_t, cross_entropy = _SoftFocalTerm._parts(x, t)
        return torch.exp(gamma * log_not_p_t) * cross_entropy

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None, None]:
        x, t = ctx.saved_tensors
        log_p, log_not_p, log_not_p_t, cross_entropy = _SoftFocalTerm._parts(x, t)
        # d log(1 - p_t) / dx = p (1 - p) (1 - 2 t) / (1 - p_t), and d CE / dx = p - t = (1 - t) p - t (1 - p).
        slope = ctx.gamma * (1 - 2 * t) * torch.exp(log_p + log_not_p - log_not_p_t) * cross_entropy
        slope = slope + (1 - t) * torch.exp(log_p) - t * torch.exp(log_not_p)
        return grad * torch.exp(ctx.gamma * log_not_p_t) * slope, None, None

    @staticmethod
    def _parts(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        log_p, log_not_p = F.logsigmoid(x), F.logsigmoid(-x)
        log_not_p_t = torch.logaddexp(log_p + torch.log1p(-t), log_not_p + torch.log(t))
        return log_p, log_not_p, log_not_p_t, -(t * log_p + (1 - t) * log_not_p)


def _to_float(logits: Tensor) -> Tensor:
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floating point, got {logits.dtype}")
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def _check_alpha_gamma(alpha: float, gamma: float) -> None:
    if not (0 <= alpha <= 1 or alpha == -1):
        raise ValueError(f"alpha must be in [0, 1], or -1 for no weighting, got {alpha}")
    if not 0 <= gamma < float("inf"):
        raise ValueError(f"gamma must be finite and >= 0, got {gamma}")


def _check_range(name: str, values: Tensor, low: int, high: int) -> None:
    """Refuse CPU values outside [low, high] or NaN; on other devices the look would wait for the device."""
    if values.device.type != "cpu" or values.numel() == 0 or torch.compiler.is_compiling():
        return
    smallest, largest = values.aminmax()
    if not (smallest >= low and largest <= high):
        raise ValueError(f"{name} must be in [{low}, {high}], got values from {smallest} to {largest}")
