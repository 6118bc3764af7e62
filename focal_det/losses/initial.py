"""The loss that a detector starts with, before its features say anything."""

import copy

import torch
from torch import Tensor

from focal_det.losses.cls_loss import ClsLoss
from focal_det.targets import DenseTargets


@torch.no_grad()
def compute_initial_loss(cls_loss: ClsLoss, bias: Tensor, targets: DenseTargets) -> Tensor:
    """The loss of anchors that all have the same logits; its state is neither used up nor changed.

    Args:
        bias: (C,) logits, such as `cls_loss.bias(prior, num_classes)`.
        targets: labels of (N, R) anchors.

    Returns:
        (N,) sums as of `cls_loss`.
    """
    logits = bias.expand(*targets.gt_labels.shape, -1)
    return copy.deepcopy(cls_loss).eval()([logits], targets)
