"""Equalized focal loss: "Equalized Focal Loss for Dense Long-Tailed Object Detection".

arXiv 2201.02593.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments import check_alpha, check_integer, check_number, to_float
from .base import ClsLoss, split_levels
from .per_anchor import focal_loss_per_anchor, focal_slope, get_sides
from .state import OptionalBuffers, is_training_step, sum_over_processes
from .targets import DenseTargets


class EqualizedFocalLoss(OptionalBuffers, ClsLoss):
    """Focal loss with more focus and weight for classes that get little positive gradient.

    Class k has gamma_k = gamma + scale (1 - g_k) and weight gamma_k / gamma. g_k in [0, 1] is the
    gradient of its positives over that of its negatives, accumulated over all earlier training
    steps of all processes (see `is_training_step`). Before the first step g_k is 1, which gives the
    focal loss.

    Args:
        num_classes: K.
        alpha: see `focal_loss_from_labels`.
        gamma: focusing parameter of a balanced class, > 0; the paper's gamma_b.
        scale: how much a class without positive gradient adds to gamma, >= 0; the paper's s. 0 is
            the focal loss.
    """

    stateful = True
    pos_grad: Tensor
    neg_grad: Tensor

    def __init__(
        self, *, num_classes: int, alpha: float = 0.25, gamma: float = 2.0, scale: float = 8.0
    ) -> None:
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

    def extra_repr(self) -> str:
        rest = f"alpha={self.alpha}, gamma={self.gamma}, scale={self.scale}"
        return f"num_classes={len(self.pos_grad)}, {rest}"

    def num_outputs(self, num_classes: int) -> int:
        if num_classes != len(self.pos_grad):
            raise ValueError(
                f"num_classes must be that of the detector, {num_classes}, got {len(self.pos_grad)}"
            )
        return num_classes

    def forward(self, logits: Sequence[Tensor], targets: DenseTargets) -> Tensor:
        # Before the first step both sums are 0, and every class counts as balanced.
        ratio = torch.where(self.neg_grad > 0, (self.pos_grad / self.neg_grad).clamp(max=1), 1.0)
        gamma = self.gamma + self.scale * (1 - ratio)
        pos_weight, neg_weight = (x * gamma / self.gamma for x in get_sides(self.alpha))
        per_level = []
        for x, labels, _ in split_levels(logits, targets):
            losses = focal_loss_per_anchor(
                x, labels, pos_weight=pos_weight, neg_weight=neg_weight, gamma=gamma
            )
            per_level.append(losses.sum(dim=1))
        # After the loss, which depends on the gradients of earlier steps only.
        if is_training_step(self):
            self._accumulate(logits, targets, pos_weight, neg_weight, gamma)
        return torch.stack(per_level).sum(dim=0)

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
        num_classes = len(gamma)
        step = gamma.new_zeros(2, num_classes)
        for x, labels, _ in split_levels(logits, targets):
            x = to_float(x).flatten(0, 1)
            labels = labels.flatten()
            pos_mask = (labels >= 0) & (labels < num_classes)
            class_idxs = labels.clamp(0, num_classes - 1)
            own = x.gather(1, class_idxs[:, None])[:, 0]
            neg = focal_slope(x, gamma)
            neg_own = torch.where(pos_mask, neg.gather(1, class_idxs[:, None])[:, 0], 0.0)
            pos_own = torch.where(pos_mask, focal_slope(-own, gamma[class_idxs]), 0.0)
            step[0].index_add_(0, class_idxs, pos_own.to(step.dtype))
            step[1] += torch.where((labels >= 0)[:, None], neg, 0.0).sum(dim=0)
            # The sum over all terms has counted own classes as negatives, too.
            step[1].index_add_(0, class_idxs, -neg_own.to(step.dtype))
        # The slopes above are of unweighted terms; all terms of a class have the same weight, which
        # follows here.
        step = sum_over_processes(step * torch.stack([pos_weight, neg_weight]))
        # New tensors: under torch.compile the backward of this step may read the old ones again.
        self.pos_grad = self.pos_grad + step[0]
        self.neg_grad = self.neg_grad + step[1]
