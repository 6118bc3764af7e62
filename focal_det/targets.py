"""DenseTargets: what every anchor of a batch should predict, as plain tensors.

Shapes: N images, R anchors per image (all levels, in level order), K classes, P positives in the batch.
"""

from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor


@dataclass(frozen=True)
class DenseTargets:
    """The labels of a batch.

    Attributes:
        gt_labels: (N, R) int64 in {-1, 0..K}: -1 is ignored, 0..K-1 a class, K is background.
        gt_boxes: (N, R, 4) XYXY in absolute pixels, the matched box of each anchor; undefined where not positive.
        num_classes: K.
        pos_idxs: two (P,) int64 tensors, the image and the anchor of each positive.
        num_pos: (N,) int64, number of positives of each image.
        anchors: (R, 4) XYXY in absolute pixels; only for losses that need "anchors".
        iou: (N, R) float32 in [0, 1], IoU of the decoded prediction with its matched box, 0 where not positive, no gradient;
            only for losses that need "iou".
    """

    gt_labels: Tensor
    gt_boxes: Tensor
    num_classes: int
    pos_idxs: tuple[Tensor, Tensor]
    num_pos: Tensor
    anchors: Optional[Tensor] = None
    iou: Optional[Tensor] = None

    @classmethod
    def from_labels(cls, gt_labels: Tensor, gt_boxes: Tensor, num_classes: int) -> "DenseTargets":
        """Find the positives of (N, R) labels; the one place of a training step that looks for them."""
        pos_mask = (gt_labels >= 0) & (gt_labels != num_classes)
        pos_idxs = torch.nonzero(pos_mask, as_tuple=True)
        return cls(gt_labels, gt_boxes, num_classes, pos_idxs, pos_mask.sum(dim=1))
