"""What the losses of K one-against-all classifiers share: the sum over the classes of an anchor, and the term of the focal loss.

x is a logit, p = sigmoid(x); z = -x_t is the logit of the wrong answer, and p_z = sigmoid(z) = 1 - p_t its probability.
Logarithms of probabilities are taken from logits, log(p) = logsigmoid(x) and log(1 - p) = logsigmoid(-x), and powers are
exponentials of them: so value and gradient are finite and precise at every finite logit, where the textbook form gives NaN once a
probability rounds to 1.
"""

from typing import Callable, Union

import torch
from torch import Tensor
from torch.nn import functional as F

from .arguments import check_logits_and_labels, check_number, to_float
from .transforms import is_forward_mode

Weight = Union[float, Tensor]  # one for all classes, or (K,)


def sum_over_classes(
    logits: Tensor,
    labels: Tensor,
    positive_term: Callable[[Tensor, Tensor], Tensor],
    negative_term: Callable[[Tensor], Tensor],
) -> Tensor:
    """Per anchor, the positive term of its own class and the negative terms of all others; no one-hot, no mask copy.

    Args:
        logits: (..., K), any float dtype; computed in float32 or wider.
        labels: (...) int64 in {-1, 0..K}: -1 is ignored, K is background.
        positive_term: from the own class's logit (..., 1) and its index (..., 1) to a loss of the same shape. It is called for
            every anchor; its value counts where the anchor has a class.
        negative_term: from logits (..., K) to losses of the same shape.

    Returns:
        (...) sums in nats; 0 where ignored, with a gradient of 0, whatever the logits are.

    Raises:
        ValueError: shapes do not fit, logits are not floating point; for CPU tensors also a label outside {-1, 0..K}.
    """
    num_classes = logits.shape[-1]
    check_logits_and_labels(logits, labels, num_classes)
    logits = blank_ignored(to_float(logits), labels)
    terms = negative_term(logits)
    # One entry per anchor is the class itself; where the anchor has none, the entry is written back as it was.
    pos_mask = (labels >= 0) & (labels < num_classes)
    class_idxs = labels.clamp(0, num_classes - 1).unsqueeze(-1)
    positive = positive_term(logits.gather(-1, class_idxs), class_idxs)
    entry = torch.where(pos_mask.unsqueeze(-1), positive, terms.gather(-1, class_idxs))
    per_anchor = terms.scatter(-1, class_idxs, entry).sum(dim=-1)
    return torch.where(labels >= 0, per_anchor, 0.0)


def blank_ignored(logits: Tensor, labels: Tensor) -> Tensor:
    """(..., C) logits with 0 where (...) labels are -1.

    So what is there, NaN included, reaches neither a loss nor a gradient. Leaving out the loss of
    these anchors would not do: the gradient would be 0 times a slope that is NaN or infinite.
    """
    return logits.masked_fill((labels < 0).unsqueeze(-1), 0.0)


def of_class(weight: Weight, class_idxs: Tensor) -> Weight:
    """The entries of a (K,) weight for (..., 1) class indices; a single number is for all classes."""
    return weight[class_idxs] if isinstance(weight, Tensor) else weight


def get_sides(alpha: Weight) -> tuple[Weight, Weight]:
    """Weights of positives and negatives: alpha and 1 - alpha, or 1 and 1 for alpha = -1."""
    if not isinstance(alpha, Tensor) and alpha < 0:
        return 1.0, 1.0
    return alpha, 1 - alpha


def focal_term(z: Tensor, gamma: Weight) -> Tensor:
    """-(1 - p_t)^gamma log(p_t) = p_z^gamma softplus(z), eq. 4 of arXiv 1708.02002, for the logit z = -x_t of the wrong answer."""
    return _FocalTerm.apply(z, gamma)


def focal_slope(z: Tensor, gamma: Weight) -> Tensor:
    """Derivative of `focal_term` with respect to z, p_z^gamma (p_z - gamma p_t log(p_t)); it is never negative."""
    log_p_z, log_p_t = F.logsigmoid(z), F.logsigmoid(-z)
    return torch.exp(gamma * log_p_z) * (torch.exp(log_p_z) - gamma * torch.exp(log_p_t) * log_p_t)


def keep_for_derivatives(ctx, *tensors: Tensor) -> None:
    """Keep tensors of an `autograd.Function` for its backward, and in forward mode for its `jvp`.

    torch releases what it keeps for backward after the backward, but what it keeps for `jvp` only
    with the result.
    """
    ctx.save_for_backward(*tensors)
    if is_forward_mode():
        ctx.save_for_forward(*tensors)


class _FocalTerm(torch.autograd.Function):
    """Keeps z alone for backward, where automatic differentiation would keep five tensors of its size."""

    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, gamma: Weight) -> Tensor:
        return torch.exp(gamma * F.logsigmoid(z)) * -F.logsigmoid(-z)

    @staticmethod
    def setup_context(ctx, inputs: tuple[Tensor, Weight], output: Tensor) -> None:
        z, gamma = inputs
        is_tensor = isinstance(gamma, Tensor)
        ctx.gamma = None if is_tensor else gamma
        keep_for_derivatives(ctx, *(inputs if is_tensor else (z,)))

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        return grad * _FocalTerm._slope(ctx), None

    @staticmethod
    def jvp(ctx, tangent: Tensor, _) -> Tensor:
        return tangent * _FocalTerm._slope(ctx)

    @staticmethod
    def _slope(ctx) -> Tensor:
        z, *gamma = ctx.saved_tensors
        return focal_slope(z, gamma[0] if gamma else ctx.gamma)


def focal_loss_per_anchor(
    logits: Tensor, labels: Tensor, *, pos_weight: Weight, neg_weight: Weight, gamma: Weight
) -> Tensor:
    """Focal loss of each anchor, summed over its classes; see `focal_loss_from_labels` for logits and labels.

    Args:
        pos_weight, neg_weight: factors of the terms of the own class and of all others; numbers or (K,).
        gamma: focusing parameter, >= 0; a number or (K,).

    Returns:
        (...) in nats, 0 where ignored.
    """
    return sum_over_classes(
        logits,
        labels,
        lambda x, idxs: of_class(pos_weight, idxs) * focal_term(-x, of_class(gamma, idxs)),
        lambda x: neg_weight * focal_term(x, gamma),
    )


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
    check_focal_star(gamma, beta)

    def term(x_t: Tensor) -> Tensor:
        return -F.logsigmoid(gamma * x_t + beta) / gamma

    return sum_over_classes(
        logits, labels, lambda x, _: pos_weight * term(x), lambda x: neg_weight * term(-x)
    )


def check_focal_star(gamma: float, beta: float) -> None:
    """Refuse a steepness that is not positive, and a shift that is not finite."""
    check_number("gamma", gamma, "(0, inf)")
    check_number("beta", beta, "(-inf, inf)")
