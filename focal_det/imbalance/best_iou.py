"""The largest IoU of each box with any anchor, without labelling the anchors.

Shapes: M boxes.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.data.transforms import Augmentation
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from torch import Tensor

from .anchors import AnchorSetup, get_feature_sizes, resize_objects, show_progress


def resize_boxes(
    records: Sequence[Mapping[str, Any]], resize: Augmentation, *, progress: str = ""
) -> tuple[Tensor, Tensor]:
    """Boxes of images as in training, but without flips and crops.

    Args:
        records, progress: as for `measure_anchors`.

    Returns:
        (M, 4) float32 XYXY in pixels of the resized image, and (M, 2) int64 its height and width.
    """
    objects = [resize_objects(x, resize) for x in show_progress(records, progress)]
    boxes = torch.cat([torch.zeros(0, 4), *(x.gt_boxes.tensor for x in objects)])
    sizes = torch.tensor([x.image_size for x in objects], dtype=torch.int64).reshape(-1, 2)
    num_boxes = torch.tensor([len(x) for x in objects], dtype=torch.int64)
    return boxes, sizes.repeat_interleave(num_boxes, dim=0)


def compute_best_iou(boxes: Tensor, image_sizes: Tensor, setup: AnchorSetup) -> Tensor:
    """Largest IoU of each box with any anchor, computed with one anchor of each shape.

    The overlap with an anchor of a given shape falls with the horizontal and with the vertical
    distance of the centres, independently. So no anchor of that shape overlaps a box more than the
    one in the nearest column and the nearest row.

    Args:
        boxes, image_sizes: of `resize_boxes`.
        setup: with Detectron2's DefaultAnchorGenerator.

    Returns:
        (M,) float32 in [0, 1]; equals `AnchorFit.best_iou` up to rounding.
    """
    best = boxes.new_zeros(len(boxes))
    generator: DefaultAnchorGenerator = setup.generator
    height, width = image_sizes.unbind(dim=1)
    maps = get_feature_sizes((height, width), setup.strides, setup.size_divisibility)
    for shapes, stride, (rows, columns) in zip(generator.cell_anchors, setup.strides, maps):
        last_cell = torch.stack([columns, rows], dim=1) - 1
        for shape in shapes:
            distance = (boxes[:, :2] + boxes[:, 2:] - shape[:2] - shape[2:]) / 2
            cell = (distance / stride - generator.offset).round()
            # The nearest cell may lie outside the feature map.
            cell = torch.minimum(cell, last_cell).clamp(min=0)
            anchors = shape + ((cell + generator.offset) * stride).repeat(1, 2)
            best = torch.maximum(best, _compute_paired_iou(anchors, boxes))
    return best


def _compute_paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """(M,) IoU of each of (M, 4) boxes with the other box of the same row."""
    top_left = torch.maximum(boxes[:, :2], others[:, :2])
    bottom_right = torch.minimum(boxes[:, 2:], others[:, 2:])
    inter = (bottom_right - top_left).clamp(min=0).prod(dim=1)
    area, other_area = ((x[:, 2:] - x[:, :2]).prod(dim=1) for x in (boxes, others))
    return inter / (area + other_area - inter)
