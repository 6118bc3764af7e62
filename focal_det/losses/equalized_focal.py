"""Equalized focal loss: "Equalized Focal Loss for Dense Long-Tailed Object Detection".

arXiv 2201.02593.
"""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

from .arguments import check_alpha, check_integer, check_number, to_float
from .base import ClsLoss, split_levels
from .per_anchor import (
    Weight,
    focal_slope,
    focal_term,
    get_sides,
    of_class,
    sum_over_classes,
)
from .state import OptionalBuffers, is_training_step, sum_over_processes
from .targets import DenseTargets


class EqualizedLoss(OptionalBuffers, ClsLoss):
    """Base of losses with more focus and weight for classes whose positives get little gradient.

    Class k has gamma_k = gamma + scale (1 - g_k) and weight gamma_k / gamma. g_k, at most 1, is the
    gradient of its positives divided by that of its negatives, each accumulated over all earlier
    training steps of all processes (see `is_training_step`). Before the first step g_k is 1, which
    gives gamma_k = gamma and a weight of 1.

    The negatives have a focal loss; a subclass defines the term of the positives.

    Args:
        num_classes: K.
        alpha: see `focal_loss_from_labels`.
        gamma: focusing parameter of a balanced class (g_k = 1), > 0; the paper's gamma_b.
        scale: what is added to gamma for a class whose positives get no gradient, >= 0; the paper's
            s. 0 gives every class the same gamma.
    """

    stateful = True
    pos_grad: Tensor
    neg_grad: Tensor

    def __init__(self, *, num_classes: int, alpha: float, gamma: float, scale: float) -> None:
        super().__init__()
        check_integer("num_classes", num_classes, "[1, inf)")
        check_alpha(alpha)
        check_number("gamma", gamma, "(0, inf)")
        check_number("scale", scale, "[0, inf)")
        self.alpha = alpha
        self.gamma = gamma
        self.scale = scale
        # Sums of the absolute derivatives with respect to the logits of a class.
        self.register_buffer("pos_grad", torch.zeros(num_classes))
        self.register_buffer("neg_grad", torch.zeros(num_classes))

    @abstractmethod
    def positive_term(self, x: Tensor, iou: Optional[Tensor], gamma: Weight) -> Tensor:
        """Loss of positives without weight.

        Args:
            x: (..., 1) logits of the anchors' own classes.
            iou: (..., 1) in [0, 1] for losses that need "iou".
            gamma: (..., 1) of the same classes.
        """

    @abstractmethod
    def positive_slope(self, x: Tensor, iou: Optional[Tensor], gamma: Weight) -> Tensor:
        """Derivative of `positive_term` by x, up to its sign."""

    def num_outputs(self, num_classes: int) -> int:
        if num_classes != len(self.pos_grad):
            raise ValueError(
                f"num_classes of the loss is {len(self.pos_grad)}, of the detector {num_classes}"
            )
        return num_classes

    def forward(self, logits: Sequence[Tensor], targets: DenseTargets) -> Tensor:
        self.check_targets(targets)
        # Before the first step both sums are 0, and every class counts as balanced.
        ratio = torch.where(self.neg_grad > 0, (self.pos_grad / self.neg_grad).clamp(max=1), 1.0)
        gamma = self.gamma + self.scale * (1 - ratio)
        pos_weight, neg_weight = (x * gamma / self.gamma for x in get_sides(self.alpha))
        per_level = []
        for x, labels, iou in split_levels(logits, targets):
            losses = self._per_anchor(x, labels, iou, pos_weight, neg_weight, gamma)
            per_level.append(losses.sum(dim=1))
        # After the loss, which depends on the gradients of earlier steps only.
        if is_training_step(self):
            self._accumulate(logits, targets, pos_weight, neg_weight, gamma)
        return torch.stack(per_level).sum(dim=0)

    def _per_anchor(
        self,
        logits: Tensor,
        labels: Tensor,
        iou: Optional[Tensor],
        pos_weight: Tensor,
        neg_weight: Tensor,
        gamma: Tensor,
    ) -> Tensor:
        """(N, Ri) losses of one level."""
        if iou is not None:
            iou = iou.unsqueeze(-1)

        def positive_term(x: Tensor, idxs: Tensor) -> Tensor:
            term = self.positive_term(x, iou, of_class(gamma, idxs))
            return of_class(pos_weight, idxs) * term

        return sum_over_classes(
            logits, labels, positive_term, lambda x: neg_weight * focal_term(x, gamma)
        )

    @torch.no_grad()
    def _accumulate(
        self,
        logits: Sequence[Tensor],
        targets: DenseTargets,
        pos_weight: Tensor,
        neg_weight: Tensor,
        gamma: Tensor,
    ) -> None:
        """Add this step's gradient to the buffers."""
        step = gamma.new_zeros(2, len(gamma))
        for x, labels, iou in split_levels(logits, targets):
            self._add_level(step, x, labels, iou, gamma)
        # The slopes so far are unweighted: a class has one weight for positives, one for negatives.
        step = sum_over_processes(step * torch.stack([pos_weight, neg_weight]))
        # New tensors: under torch.compile the backward of this step may read the old ones again.
        self.pos_grad = self.pos_grad + step[0]
        self.neg_grad = self.neg_grad + step[1]

    def _add_level(
        self, step: Tensor, x: Tensor, labels: Tensor, iou: Optional[Tensor], gamma: Tensor
    ) -> None:
        """Add the gradient of one level, without weights, to the (2, K) sums of a step."""
        num_classes = len(gamma)
        x = to_float(x).flatten(0, 1)
        labels = labels.flatten()
        if iou is not None:
            iou = iou.flatten()[:, None]
        pos_mask = (labels >= 0) & (labels < num_classes)
        class_idxs = labels.clamp(0, num_classes - 1)
        own = x.gather(1, class_idxs[:, None])
        neg = focal_slope(x, gamma)
        neg_own = torch.where(pos_mask, neg.gather(1, class_idxs[:, None])[:, 0], 0.0)
        pos_own = self.positive_slope(own, iou, gamma[class_idxs][:, None])[:, 0].abs()
        pos_own = torch.where(pos_mask, pos_own, 0.0)
        step[0].index_add_(0, class_idxs, pos_own.to(step.dtype))
        step[1] += torch.where((labels >= 0)[:, None], neg, 0.0).sum(dim=0)
        # The sum above has counted the own classes of positives as negatives, too.
        step[1].index_add_(0, class_idxs, -neg_own.to(step.dtype))


class EqualizedFocalLoss(EqualizedLoss):
    """Focal loss with more focus and weight for classes whose positives get little gradient.

    See `EqualizedLoss`, also for the arguments. Before the first step, and always with a scale of
    0, it is the focal loss.
    """

    def __init__(
        self, *, num_classes: int, alpha: float = 0.25, gamma: float = 2.0, scale: float = 8.0
    ) -> None:
        super().__init__(num_classes=num_classes, alpha=alpha, gamma=gamma, scale=scale)

    def extra_repr(self) -> str:
        rest = f"alpha={self.alpha}, gamma={self.gamma}, scale={self.scale}"
        return f"num_classes={len(self.pos_grad)}, {rest}"

    def positive_term(self, x: Tensor, iou: Optional[Tensor], gamma: Weight) -> Tensor:
        return focal_term(-x, gamma)

    def positive_slope(self, x: Tensor, iou: Optional[Tensor], gamma: Weight) -> Tensor:
        return focal_slope(-x, gamma)
