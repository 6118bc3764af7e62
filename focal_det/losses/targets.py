"""DenseTargets: what every anchor of a batch should predict, as plain tensors.

Shapes: N images, R anchors per image (all levels, in level order), K classes, P positives of the
batch.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Optional, TypeVar

import torch
from torch import Tensor

_Value = TypeVar("_Value")


@dataclass(frozen=True)
class DenseTargets:
    """What the anchors of a batch should predict; made by `build`.

    Attributes:
        gt_labels: (N, R) int64 in {-1, 0..K}: -1 is ignored, 0..K-1 are classes, K is background.
        gt_boxes: (N, R, 4) XYXY in absolute pixels, the matched box of each anchor; undefined where
            the anchor is not positive.
        num_classes: K.
        pos_idxs: two (P,) int64 tensors, the image and the anchor of each positive.
        num_pos: (N,) int64, number of positives in each image.
        anchors: (N, R, 4) XYXY in absolute pixels; only for losses that need "anchors".
        iou: (N, R) float32 in [0, 1], IoU of the decoded prediction with its matched box, 0 where
            the anchor is not positive, without gradient; only for losses that need "iou".
    """

    gt_labels: Tensor
    gt_boxes: Tensor
    num_classes: int
    pos_idxs: tuple[Tensor, Tensor]
    num_pos: Tensor
    anchors: Optional[Tensor] = None
    iou: Optional[Tensor] = None

    @property
    def num_samples(self) -> Tensor:
        """(N,) int64, anchors of each image that are not ignored."""
        return (self.gt_labels >= 0).sum(dim=1)

    @classmethod
    def build(
        cls,
        gt_labels: Tensor,
        gt_boxes: Tensor,
        num_classes: int,
        *,
        needs: Collection[str] = (),
        anchors: Optional[Tensor] = None,
        compute_iou: Optional[Callable[["DenseTargets"], Tensor]] = None,
    ) -> "DenseTargets":
        """Assemble the targets of a batch; the one place that searches for positives.

        Args:
            gt_labels, gt_boxes, num_classes: see the attributes.
            anchors: (R, 4) if all images have the same, or (N, R, 4) for proposals.
            needs: what the losses need: a subset of {"iou", "anchors"}.
            compute_iou: from targets without IoU to (N, R) IoU; called if "iou" is needed.

        Raises:
            ValueError: `anchors` or `compute_iou` is needed but None.
        """
        pos_mask = (gt_labels >= 0) & (gt_labels != num_classes)
        # The number of positives becomes a shape, so this waits for the device (docs/speed.md).
        image_idxs, anchor_idxs = torch.nonzero(pos_mask, as_tuple=True)
        targets = cls(
            gt_labels=gt_labels,
            gt_boxes=gt_boxes,
            num_classes=num_classes,
            pos_idxs=(image_idxs, anchor_idxs),
            num_pos=pos_mask.sum(dim=1),
        )
        # What no loss needs stays None, so that a loss that reads it undeclared fails at once.
        if "anchors" in needs:
            # A view: the images of a dense detector share their anchors.
            shared = _require("anchors", anchors).expand(*gt_labels.shape, 4)
            targets = replace(targets, anchors=shared)
        if "iou" in needs:
            targets = replace(targets, iou=_require("compute_iou", compute_iou)(targets))
        return targets


def _require(name: str, value: Optional[_Value]) -> _Value:
    if value is None:
        raise ValueError(f"the loss needs {name}, got None")
    return value
