"""Definitions of the focal loss and FL* per anchor, in plain torch, and helpers that losses share.

Both are losses of K one-against-all classifiers, summed over the classes of an anchor. x is a
logit and p = sigmoid(x). x_t, the logit of the right answer, is x for the anchor's own class and -x
for all others, and p_t = sigmoid(x_t). z = -x_t is the logit of the wrong answer, and
p_z = sigmoid(z) = 1 - p_t its probability.

Logarithms of probabilities are computed from logits, log(p) = logsigmoid(x) and
log(1 - p) = logsigmoid(-x), and powers are exponentials of these logarithms. So value and gradient
are finite and precise at every finite logit; the textbook form gives NaN once a probability rounds
to 1.
"""

from collections.abc import Callable
from typing import Any, Optional, Union, overload

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
    """Positive term of each anchor's own class plus the negative terms of all other classes.

    No one-hot tensor is made.

    Args:
        logits: (..., K), any float dtype; float16 and bfloat16 are computed in float32.
        labels: (...) int64 in {-1, 0..K}: -1 is ignored, K is background.
        positive_term: from the logit (..., 1) of the own class and its index (..., 1) to a loss of
            the same shape. Called for every anchor; the value counts where the anchor has a class.
        negative_term: from logits (..., K) to losses of the same shape.

    Returns:
        (...) sums in nats; 0 where ignored, with a gradient of 0, whatever the logits are.

    Raises:
        ValueError: shapes that do not fit, logits that are not floating point; for CPU tensors also
            a label outside {-1, 0..K}.
    """
    num_classes = logits.shape[-1]
    check_logits_and_labels(logits, labels, num_classes)
    logits = blank_ignored(to_float(logits), labels)
    terms = negative_term(logits)

    # One entry per anchor is replaced by the positive term; where the anchor has no class, the
    # entry is written back unchanged.
    pos_mask = (labels >= 0) & (labels < num_classes)
    class_idxs = labels.clamp(0, num_classes - 1).unsqueeze(-1)
    positive = positive_term(logits.gather(-1, class_idxs), class_idxs)
    entry = torch.where(pos_mask.unsqueeze(-1), positive, terms.gather(-1, class_idxs))
    per_anchor = terms.scatter(-1, class_idxs, entry).sum(dim=-1)
    # Ignored anchors still have the loss of negatives with logit 0.
    return torch.where(labels >= 0, per_anchor, 0.0)


def blank_ignored(logits: Tensor, labels: Tensor) -> Tensor:
    """(..., C) logits, C per anchor, with 0 where the (...) labels are -1.

    So the logits of ignored anchors, NaN included, reach neither a loss nor a gradient. Leaving out
    their losses would not be enough: the gradient would be 0 times a slope that is NaN or infinite.
    """
    return logits.masked_fill((labels < 0).unsqueeze(-1), 0.0)


def of_class(weight: Weight, class_idxs: Tensor) -> Weight:
    """Entries of a (K,) weight for (..., 1) class indices; a single number is for all classes."""
    if isinstance(weight, Tensor):
        return weight[class_idxs]
    return weight


@overload
def get_sides(alpha: float) -> tuple[float, float]: ...
@overload
def get_sides(alpha: Weight) -> tuple[Weight, Weight]: ...
def get_sides(alpha: Weight) -> tuple[Weight, Weight]:
    """Weights of positives and negatives: alpha and 1 - alpha, or 1 and 1 for alpha = -1."""
    if not isinstance(alpha, Tensor) and alpha < 0:
        return 1.0, 1.0
    return alpha, 1 - alpha


def focal_term(z: Tensor, gamma: Weight) -> Tensor:
    """p_z^gamma softplus(z) = -(1 - p_t)^gamma log(p_t), eq. 4 of arXiv 1708.02002."""
    term: Tensor = _FocalTerm.apply(z, gamma)
    return term


def weighted_term(z: Tensor, gamma: float) -> Tensor:
    """`focal_term` with the factor p_z^gamma detached, as a weight of the cross entropy."""
    return torch.exp(gamma * F.logsigmoid(z.detach())) * focal_term(z, 0.0)


def focal_slope(z: Tensor, gamma: Weight) -> Tensor:
    """Derivative of `focal_term` by z, p_z^gamma (p_z - gamma p_t log(p_t)); never negative."""
    # The terms of the sum have one sign, so nothing cancels.
    log_p_z = F.logsigmoid(z)
    log_p_t = F.logsigmoid(-z)
    return torch.exp(gamma * log_p_z) * (torch.exp(log_p_z) - gamma * torch.exp(log_p_t) * log_p_t)


def keep_for_derivatives(ctx: Any, *tensors: Tensor) -> None:
    """Keep tensors of an `autograd.Function` for its backward, and in forward mode for its `jvp`.

    Tensors kept for backward are released after the backward, but those kept for `jvp` live as long
    as the result, so tensors are kept for it only in forward mode.
    """
    ctx.save_for_backward(*tensors)
    if is_forward_mode():
        ctx.save_for_forward(*tensors)


def keep_with_exponent(ctx: Any, *values: Weight) -> None:
    """`keep_for_derivatives` of tensors and, as the last value, an exponent; see `get_kept`."""
    exponent = values[-1]
    # Tensors must be kept by `save_for_backward`, numbers cannot be.
    ctx.exponent = None
    if not isinstance(exponent, Tensor):
        ctx.exponent = exponent
    keep_for_derivatives(ctx, *(x for x in values if isinstance(x, Tensor)))


def get_kept(ctx: Any) -> tuple[Any, ...]:
    """The values that `keep_with_exponent` has kept, in their order."""
    kept: tuple[Any, ...] = ctx.saved_tensors
    if ctx.exponent is not None:
        kept = (*kept, ctx.exponent)
    return kept


class _FocalTerm(torch.autograd.Function):
    """`focal_term`, which keeps z alone for backward; autograd would keep five tensors."""

    # Lets torch.func.vmap through; all operations are elementwise.
    generate_vmap_rule = True

    @staticmethod
    def forward(z: Tensor, gamma: Weight) -> Tensor:
        return torch.exp(gamma * F.logsigmoid(z)) * -F.logsigmoid(-z)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Weight], output: Tensor) -> None:
        keep_with_exponent(ctx, *inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * focal_slope(*get_kept(ctx)), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: Optional[Tensor]) -> Tensor:
        return tangent * focal_slope(*get_kept(ctx))


def focal_loss_per_anchor(
    logits: Tensor, labels: Tensor, *, pos_weight: Weight, neg_weight: Weight, gamma: Weight
) -> Tensor:
    """Focal loss of each anchor, summed over its classes.

    Args:
        logits, labels, gamma: see `focal_loss_from_labels`; gamma may be (K,), one per class.
        pos_weight: factor of the term of an anchor's own class, >= 0; a number or (K,).
        neg_weight: factor of the terms of all other classes, >= 0; a number or (K,).

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
    """FL* of each anchor, summed over its classes; appendix A of arXiv 1708.02002.

    -weight log(p*_t) / gamma with p*_t = sigmoid(gamma x_t + beta).

    Args:
        logits, labels: see `focal_loss_from_labels`.
        pos_weight, neg_weight: see `focal_loss_per_anchor`; numbers only.
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
