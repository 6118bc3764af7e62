"""How well anchors fit the boxes of a data set: which boxes are reached, and by how many anchors.

Shapes: M boxes, R anchors of an image, K classes, L levels.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import (
    annotations_to_instances,
    filter_empty_instances,
    transform_instance_annotations,
)
from detectron2.data.transforms import Augmentation, ResizeShortestEdge
from detectron2.modeling import build_anchor_generator, build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from tqdm import tqdm

from focal_det.modeling.assigners import check_gt_classes, compute_gt_labels
from focal_det.modeling.build import build_matcher, read_settings
from focal_det.modeling.matching import match_anchors

from .read import get_middle_size


@dataclass(frozen=True)
class Anchors:
    """Shapes of anchors.

    Attributes:
        sizes: per level, sides of the square ones, in pixels.
        aspect_ratios: height / width of those of each size, on all levels.
        strides: per level, in pixels.
    """

    sizes: Sequence[Sequence[float]]
    aspect_ratios: Sequence[float]
    strides: Sequence[int]


@dataclass(frozen=True)
class AnchorSetup:
    """What decides the anchors of an image and their labels.

    Attributes:
        generator: the model's.
        strides: of the feature maps that have anchors.
        matcher: thresholds, labels and low-quality matches.
        resize: what the images go through; its transform is applied to the boxes.
        size_divisibility: what the backbone has images padded to, each by itself; in training also to the largest of its batch.
        num_classes: K.
    """

    generator: nn.Module
    strides: Sequence[int]
    matcher: Matcher
    resize: Augmentation
    size_divisibility: int
    num_classes: int

    def generate(self, image_size: tuple[int, int]) -> list[Boxes]:
        """Anchors per level of an image of (height, width) pixels."""
        # The generator looks at nothing but height and width; maps without channels take no memory.
        sizes = get_feature_sizes(image_size, self.strides, self.size_divisibility)
        return self.generator([torch.empty(1, 0, *x) for x in sizes])

    def with_anchors(self, anchors: Anchors) -> "AnchorSetup":
        """The same with other anchors of Detectron2's DefaultAnchorGenerator."""
        shapes = {
            "sizes": anchors.sizes,
            "aspect_ratios": [anchors.aspect_ratios],
            "strides": anchors.strides,
        }
        generator = DefaultAnchorGenerator(**shapes, offset=self.generator.offset)
        return replace(self, generator=generator, strides=anchors.strides)


@dataclass(frozen=True)
class AnchorFit:
    """What the labels of a data set's anchors are like.

    Attributes:
        positives: (K,) int64, anchors that are positive, by class.
        positives_per_level: (L,) int64.
        positives_per_image: (N,) int64.
        num_anchors: of all images together, ignored ones included.
        best_iou: (M,) the largest IoU of each box with any anchor.
        has_positive: (M,) bool, whether a positive anchor is matched to the box: others may have taken all.
        sides: (M, 2) width and height of the boxes in the resized image, in pixels.
        classes: (M,) int64 class ids.
        iou_thresh: from which an anchor is positive.
    """

    positives: np.ndarray
    positives_per_level: np.ndarray
    positives_per_image: np.ndarray
    num_anchors: int
    best_iou: np.ndarray
    has_positive: np.ndarray
    sides: np.ndarray
    classes: np.ndarray
    iou_thresh: float

    @property
    def is_reached(self) -> np.ndarray:
        """(M,) bool: boxes that some anchor overlaps by the threshold or more."""
        return self.best_iou >= self.iou_thresh

    @property
    def score(self) -> float:
        """Share of boxes reached; in [0, 1], NaN without boxes."""
        return float(self.is_reached.mean()) if len(self.best_iou) else float("nan")


def build_anchor_setup(cfg: CfgNode) -> AnchorSetup:
    """Anchors and thresholds as FocalRetinaNet has them, images of the middle size."""
    settings = read_settings(cfg)
    backbone = build_backbone(cfg)
    size = get_middle_size(cfg)
    shapes = [backbone.output_shape()[name] for name in settings.level_names]
    return AnchorSetup(
        generator=build_anchor_generator(cfg, shapes),
        strides=[x.stride for x in shapes],
        matcher=build_matcher(cfg),
        resize=ResizeShortestEdge((size, size), cfg.INPUT.MAX_SIZE_TRAIN, "choice"),
        size_divisibility=backbone.size_divisibility,
        num_classes=settings.num_classes,
    )


def measure_anchors(
    records: Sequence[Mapping[str, Any]], setup: AnchorSetup, *, progress: str = ""
) -> AnchorFit:
    """Label the anchors of images as FocalRetinaNet does in training; no image is opened, flips and crops are left out.

    Args:
        records: Detectron2's dataset dicts with "height" and "width".
        progress: what the progress bar on a terminal says; none if empty.

    Raises:
        ValueError: a record without size, or a class id outside 0..K-1.
    """
    images = [_label_image(x, setup) for x in _show_progress(records, progress)]
    num_classes = setup.num_classes
    boxes, levels = [x["boxes"] for x in images], [x["levels"] for x in images]
    classes = torch.cat([x["labels"] for x in images])
    return AnchorFit(
        positives=torch.bincount(classes, minlength=num_classes).numpy(),
        positives_per_level=torch.bincount(torch.cat(levels), minlength=len(setup.strides)).numpy(),
        positives_per_image=np.array([len(x) for x in levels]),
        num_anchors=sum(x["num_anchors"] for x in images),
        best_iou=torch.cat([x["best_iou"] for x in images]).numpy(),
        has_positive=torch.cat([x["has_positive"] for x in images]).numpy(),
        sides=torch.cat([x[:, 2:] - x[:, :2] for x in boxes]).numpy(),
        classes=torch.cat([x["classes"] for x in images]).numpy(),
        iou_thresh=setup.matcher.thresholds[-2],
    )


def _show_progress(records: Sequence[Mapping[str, Any]], what: str) -> Iterable:
    is_disabled = None if what else True  # None: shown on a terminal only
    return tqdm(records, desc=what, unit=" images", disable=is_disabled, leave=False)


def resize_boxes(
    records: Sequence[Mapping[str, Any]], resize: Augmentation, *, progress: str = ""
) -> tuple[Tensor, Tensor]:
    """The boxes of images as training has them; no image is opened, flips and crops are left out.

    Args:
        records, progress: as for `measure_anchors`.

    Returns:
        (M, 4) float32 XYXY in pixels of the resized image, and (M, 2) its height and width.
    """
    objects = [_resize_objects(x, resize) for x in _show_progress(records, progress)]
    boxes = torch.cat([torch.zeros(0, 4), *(x.gt_boxes.tensor for x in objects)])
    sizes = torch.tensor([x.image_size for x in objects], dtype=torch.int64).reshape(-1, 2)
    num_boxes = torch.tensor([len(x) for x in objects], dtype=torch.int64)
    return boxes, sizes.repeat_interleave(num_boxes, dim=0)


def compute_best_iou(boxes: Tensor, image_sizes: Tensor, setup: AnchorSetup) -> Tensor:
    """The largest IoU of each box with any anchor, from one anchor of each shape.

    The overlap with an anchor of a given shape shrinks with the distance of the centres, across and
    down, each by itself. So no anchor of that shape overlaps a box more than the one in the nearest
    column and the nearest row.

    Args:
        boxes, image_sizes: of `resize_boxes`.
        setup: with Detectron2's DefaultAnchorGenerator.

    Returns:
        (M,) in [0, 1]; but for rounding, `AnchorFit.best_iou`.
    """
    best, generator = boxes.new_zeros(len(boxes)), setup.generator
    height, width = image_sizes.unbind(dim=1)
    maps = get_feature_sizes((height, width), setup.strides, setup.size_divisibility)
    for shapes, stride, (rows, columns) in zip(generator.cell_anchors, setup.strides, maps):
        last_cell = torch.stack([columns, rows], dim=1) - 1
        for shape in shapes:
            distance = (boxes[:, :2] + boxes[:, 2:] - shape[:2] - shape[2:]) / 2
            cell = (distance / stride - generator.offset).round()
            cell = torch.minimum(cell, last_cell).clamp(min=0)
            anchors = shape + ((cell + generator.offset) * stride).repeat(1, 2)
            best = torch.maximum(best, _compute_paired_iou(anchors, boxes))
    return best


def _compute_paired_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """(M,) IoU of each of (M, 4) boxes with the other of the same row."""
    top_left = torch.maximum(boxes[:, :2], others[:, :2])
    bottom_right = torch.minimum(boxes[:, 2:], others[:, 2:])
    inter = (bottom_right - top_left).clamp(min=0).prod(dim=1)
    area, other_area = ((x[:, 2:] - x[:, :2]).prod(dim=1) for x in (boxes, others))
    return inter / (area + other_area - inter)


def _label_image(record: Mapping[str, Any], setup: AnchorSetup) -> dict[str, Any]:
    """Labels, levels of the positives, and what each box gets."""
    objects, anchors, labels, matched_idxs, best_iou = label_record(record, setup)
    is_positive = (labels >= 0) & (labels < setup.num_classes)
    level = torch.cat([torch.full((len(x),), i) for i, x in enumerate(anchors)])
    return {
        "boxes": objects.gt_boxes.tensor,
        "classes": objects.gt_classes,
        "labels": labels[is_positive],
        "levels": level[is_positive],
        "best_iou": best_iou,
        "has_positive": torch.bincount(matched_idxs[is_positive], minlength=len(objects)) > 0,
        "num_anchors": len(labels),
    }


def label_record(
    record: Mapping[str, Any], setup: AnchorSetup
) -> tuple[Instances, list[Boxes], Tensor, Tensor, Tensor]:
    """Label the anchors of one dataset dict.

    Returns:
        The resized objects, anchors per level, (R,) labels in {-1, 0..K}, (R,) matched boxes, and (M,) best IoU of each box.
    """
    objects = _resize_objects(record, setup.resize)
    check_gt_classes(objects.gt_classes, setup.num_classes, str(record["file_name"]))
    anchors = setup.generate(objects.image_size)
    num_anchors = sum(len(x) for x in anchors)
    if len(objects) == 0:
        no_match = torch.zeros(num_anchors, dtype=torch.int64)
        return (
            objects,
            anchors,
            torch.full_like(no_match, setup.num_classes),
            no_match,
            torch.zeros(0),
        )
    matches = match_anchors(Boxes.cat(anchors).tensor, objects.gt_boxes.tensor)
    labels = compute_gt_labels(matches, objects.gt_classes, setup.matcher, setup.num_classes)
    return objects, anchors, labels, matches.matched_idxs, matches.max_iou_of_box


def get_feature_sizes(
    image_size: tuple[int, int], strides: Sequence[int], size_divisibility: int
) -> list[tuple[int, int]]:
    """(height, width) of the feature map of each stride, for an image of (height, width) that is padded to `size_divisibility`.

    Every layer of stride 2, those of p6 and p7 included, rounds up: ceil(ceil(x / 2) / 2) = ceil(x / 4).
    """
    divisor = max(size_divisibility, 1)
    height, width = (-(-x // divisor) * divisor for x in image_size)
    return [(-(-height // stride), -(-width // stride)) for stride in strides]


def get_objects(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The annotations of a dataset dict that are trained on: crowds are left out."""
    return [x for x in record["annotations"] if x.get("iscrowd", 0) == 0]


def _resize_objects(record: Mapping[str, Any], resize: Augmentation) -> Instances:
    """What Detectron2's DatasetMapper makes of the annotations, from the size of the image alone."""
    if "height" not in record or "width" not in record:
        raise ValueError(
            f"Image {record['file_name']} has no 'height' and 'width' in its dataset dict; add them where it is loaded"
        )
    height, width = int(record["height"]), int(record["width"])  # a json may have 96.0
    transform = resize.get_transform(np.broadcast_to(np.uint8(0), (height, width, 3)))
    # Of size 0, Detectron2's resize is a transform that does nothing and has no sizes.
    size = (getattr(transform, "new_h", height), getattr(transform, "new_w", width))
    keys = ("bbox", "bbox_mode", "category_id")
    objects = [
        transform_instance_annotations({k: x[k] for k in keys}, transform, size)
        for x in get_objects(record)
    ]
    objects = [
        {**x, "bbox": x["bbox"].tolist()} for x in objects
    ]  # torch warns about lists of arrays
    return filter_empty_instances(annotations_to_instances(objects, size))
