"""The loss that a detector starts with, before its features say anything."""

import copy
from collections.abc import Sequence

import torch
from torch import Tensor

from .base import ClsLoss
from .targets import DenseTargets


@torch.no_grad()
def compute_initial_loss(
    cls_loss: ClsLoss, bias: Tensor, targets: DenseTargets, level_sizes: Sequence[int]
) -> Tensor:
    """The loss of anchors that all have the same logits; its state is neither used up nor changed.

    Args:
        bias: (C,) logits, such as `cls_loss.bias(prior, num_classes)`.
        targets: labels of (N, R) anchors.
        level_sizes: anchors per image of each level; their sum is R.

    Returns:
        (N,) sums as of `cls_loss`.
    """
    cls_loss = copy.deepcopy(cls_loss).eval()
    if not cls_loss.pointwise:
        logits = bias.expand(*targets.gt_labels.shape, -1).split(list(level_sizes), dim=1)
        return cls_loss(logits, targets)

    def per_anchor(labels: Tensor, iou: Tensor) -> Tensor:
        return cls_loss.per_anchor(bias.expand(1, len(labels), -1), labels[None], iou[None])[0]

    # One anchor of each label -1, 0..K tells the loss of all, but for positives where it depends on their IoU.
    kinds = torch.arange(-1, targets.num_classes + 1, device=bias.device)
    losses = per_anchor(kinds, torch.zeros(kinds.shape, device=bias.device))[targets.gt_labels + 1]
    if targets.iou is not None:
        losses[targets.pos_idxs] = per_anchor(
            targets.gt_labels[targets.pos_idxs], targets.iou[targets.pos_idxs]
        )
    return losses.sum(dim=1)
