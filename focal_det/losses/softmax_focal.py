"""Softmax cross entropy and focal loss: one distribution over K classes and background."""

from collections.abc import Sequence
from typing import Optional, Union

import torch
from torch import Tensor

from .arguments import check_alpha_and_gamma, check_logits_and_labels, to_float
from .base import PointwiseClsLoss, get_priors
from .per_anchor import blank_ignored, focal_term, get_sides


def softmax_focal_loss_per_anchor(
    logits: Tensor, labels: Tensor, *, alpha: float, gamma: float
) -> Tensor:
    """Focal loss of the softmax over K classes and background, of each anchor.

    -alpha_t (1 - p_t)^gamma log(p_t) with p_t the softmax probability of the anchor's label,
    background included. It is the binary focal loss of the margin
    x_t - log(sum of exp of all other logits), whose sigmoid is p_t.

    Args:
        logits: (..., K + 1), background last; any float dtype, computed in float32 or wider.
        labels: (...) int64 in {-1, 0..K}: -1 is ignored, K is background.
        alpha: weight, in [0, 1], of anchors with a class; background has 1 - alpha. -1 for no
            weighting.
        gamma: focusing parameter, >= 0; 0 is cross entropy.

    Returns:
        (...) in nats, 0 where ignored.

    Raises:
        ValueError: alpha or gamma out of range, shapes or labels that do not fit.
    """
    check_alpha_and_gamma(alpha, gamma)
    background = logits.shape[-1] - 1
    check_logits_and_labels(logits, labels, background)
    logits = blank_ignored(to_float(logits), labels)
    # -margin = log(sum over the other classes of exp(x - x_t)), without the label's own term.
    label_idxs = labels.clamp(min=0).unsqueeze(-1)
    others = logits - logits.gather(-1, label_idxs)
    z = others.scatter(-1, label_idxs, -torch.inf).logsumexp(dim=-1)
    pos_weight, neg_weight = get_sides(alpha)
    weight = torch.full_like(z, neg_weight).masked_fill_(labels < background, pos_weight)
    return torch.where(labels >= 0, weight * focal_term(z, gamma), 0.0)


class SoftmaxFocalLoss(PointwiseClsLoss):
    """Softmax focal loss as in Detectron, cross entropy for gamma = 0.

    See `softmax_focal_loss_per_anchor`. The head has K + 1 outputs per anchor, background last.
    Every anchor starts with a total foreground probability pi, pi / K per class: the bias of
    background is log(K (1 - pi) / pi), those of the classes are 0.
    """

    def __init__(self, *, alpha: float = 0.25, gamma: float = 2.0) -> None:
        super().__init__()
        check_alpha_and_gamma(alpha, gamma)
        self.alpha = alpha
        self.gamma = gamma

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, gamma={self.gamma}"

    def num_outputs(self, num_classes: int) -> int:
        return num_classes + 1

    def bias(self, prior: Union[float, Sequence[float]], num_classes: int) -> Tensor:
        priors = get_priors(prior, num_classes)
        # A single prior is the total of all classes; a list has one for each class.
        if isinstance(prior, (int, float)):
            priors = priors / num_classes
        total = priors.sum()
        if not total < 1:
            raise ValueError(f"the priors of all classes must sum to less than 1, got {total:.4g}")
        # Adding a constant to all logits changes nothing; here it gives equal priors a bias of 0.
        foreground = (priors * num_classes / total).log()
        background = (num_classes * (1 - total) / total).log()
        return torch.cat([foreground, background[None]]).float()

    def scores(self, logits: Tensor) -> Tensor:
        # Without background, which is never detected.
        return logits.softmax(dim=-1)[..., :-1]

    def per_anchor(self, logits: Tensor, labels: Tensor, iou: Optional[Tensor] = None) -> Tensor:
        return softmax_focal_loss_per_anchor(logits, labels, alpha=self.alpha, gamma=self.gamma)
