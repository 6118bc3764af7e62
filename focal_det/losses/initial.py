"""The loss that a detector starts with, before its features carry information."""

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from .base import ClsLoss, PointwiseClsLoss
from .targets import DenseTargets


@torch.no_grad()
def compute_initial_loss(
    cls_loss: ClsLoss, bias: Tensor, targets: DenseTargets, level_sizes: Sequence[int]
) -> Tensor:
    """Loss of a batch whose anchors all have the same logits; `cls_loss` keeps its state.

    Args:
        bias: (C,) logits, such as `cls_loss.bias(prior, num_classes)`.
        targets: labels of (N, R) anchors.
        level_sizes: anchors per image of each level; their sum is R.

    Returns:
        (N,) loss of each image, as `cls_loss` returns it.
    """
    # A copy in evaluation mode, as a stateful loss would count this batch as a training step.
    cls_loss = copy.deepcopy(cls_loss).eval()
    if not cls_loss.pointwise:
        logits = bias.expand(*targets.gt_labels.shape, -1).split(list(level_sizes), dim=1)
        sums: Tensor = cls_loss(logits, targets)
        return sums

    pointwise_loss = cast(PointwiseClsLoss, cls_loss)

    def per_anchor(labels: Tensor, iou: Tensor) -> Tensor:
        logits = bias.expand(1, len(labels), -1)
        return pointwise_loss.per_anchor(logits, labels[None], iou[None])[0]

    # Computed once for each label -1, 0..K, as all anchors with the same label have the same loss;
    # positives one by one where their loss depends on their IoU.
    kinds = torch.arange(-1, targets.num_classes + 1, device=bias.device)
    losses = per_anchor(kinds, torch.zeros(kinds.shape, device=bias.device))[targets.gt_labels + 1]
    if targets.iou is not None:
        losses[targets.pos_idxs] = per_anchor(
            targets.gt_labels[targets.pos_idxs], targets.iou[targets.pos_idxs]
        )
    return losses.sum(dim=1)
