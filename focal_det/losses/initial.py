"""The loss that a detector starts with, before its features say anything."""

import copy
from dataclasses import replace

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
    cls_loss, sums = copy.deepcopy(cls_loss).eval(), []
    # Image by image where that is the same, as the logits of a batch may not fit beside what a step keeps.
    size = 1 if cls_loss.pointwise else max(1, len(targets.gt_labels))
    for i in range(0, len(targets.gt_labels), size):
        labels, boxes = targets.gt_labels[i : i + size], targets.gt_boxes[i : i + size]
        some = DenseTargets.from_labels(labels, boxes, targets.num_classes)
        some = replace(some, anchors=targets.anchors, iou=None if targets.iou is None else targets.iou[i : i + size])
        sums.append(cls_loss([bias.expand(*labels.shape, -1)], some))
    return torch.cat(sums)
