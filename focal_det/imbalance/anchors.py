"""How well anchors fit the boxes of a data set: the boxes they reach, the number of positives.

No image is opened: the size of an image and its annotations decide the labels of its anchors.

Shapes: N images, M boxes, R anchors of an image, K classes, L levels.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

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
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn
from tqdm import tqdm

from focal_det.modeling.assigners import Assigner, IoUAssigner, check_gt_classes
from focal_det.modeling.build import build_assigner, read_settings
from focal_det.modeling.matching import match_anchors
from focal_det.modeling.parts import ARCHITECTURE, get_keys_read, get_part
from focal_det.modeling.settings import read_anchors

from .read import get_middle_size, get_objects

_Side = TypeVar("_Side", int, Tensor)


@dataclass(frozen=True)
class Anchors:
    """Shapes of anchors.

    Attributes:
        sizes: per level, square roots of the anchors' areas, in pixels.
        aspect_ratios: height / width of the anchors of each size, on all levels.
        strides: per level, in pixels.
    """

    sizes: Sequence[Sequence[float]]
    aspect_ratios: Sequence[float]
    strides: Sequence[int]


@dataclass(frozen=True)
class AnchorSetup:
    """Everything that decides the anchors of an image and their labels.

    Attributes:
        generator: the model's anchor generator.
        strides: per feature map that has anchors, in pixels.
        level_names: of the model's feature maps that have anchors.
        positive_thresh: IoU from which Detectron2's matcher labels an anchor positive, apart from
            low-quality matches.
        resize: how images are resized; its transform is applied to the boxes.
        size_divisibility: the sides of an image are padded to a multiple of it. (Training also pads
            to the largest image of a batch, which adds negatives outside the image.)
        num_classes: K.
        assigner: labels the anchors.
        stands_in_for: name of the detector's own assigner, if that needs predictions; else empty.
        has_iou_thresh: whether the detector's own assigner has a threshold of IoU.
        reach_thresh: smallest IoU at which an anchor reaches a box.
        boundary_thresh: anchors that extend beyond the image by more pixels than this are ignored;
            none are if it is negative.
    """

    generator: nn.Module
    strides: Sequence[int]
    level_names: Sequence[str]
    positive_thresh: float
    resize: Augmentation
    size_divisibility: int
    num_classes: int
    assigner: Assigner
    reach_thresh: float
    boundary_thresh: int = -1
    stands_in_for: str = ""
    has_iou_thresh: bool = True

    def generate(self, image_size: tuple[int, int]) -> list[Boxes]:
        """Anchors per level of an image of (height, width) pixels."""
        # The generator reads nothing but height and width; maps without channels take no memory.
        sizes = get_feature_sizes(image_size, self.strides, self.size_divisibility)
        return self.generator([torch.empty(1, 0, *x) for x in sizes])

    def with_anchors(self, anchors: Anchors) -> "AnchorSetup":
        """The same setup with other anchors, of Detectron2's DefaultAnchorGenerator."""
        generator = DefaultAnchorGenerator(
            sizes=anchors.sizes,
            aspect_ratios=[anchors.aspect_ratios],
            strides=anchors.strides,
            offset=self.generator.offset,
        )
        return replace(self, generator=generator, strides=anchors.strides)


@dataclass(frozen=True)
class AnchorFit:
    """Labels of a data set's anchors, summed up.

    Attributes:
        positives: (K,) int64 positive anchors of each class.
        positives_per_level: (L,) int64.
        positives_per_image, negatives_per_image: (N,) int64.
        num_anchors: anchors of all images, ignored ones included.
        best_iou: (M,) float32 largest IoU of each box with any anchor, in [0, 1].
        has_positive: (M,) bool, whether a positive anchor is matched to the box; other boxes may
            have taken all the anchors that overlap it.
        sides: (M, 2) float32 width and height of the boxes in the resized image, in pixels.
        classes: (M,) int64 class ids.
        iou_thresh: smallest IoU at which an anchor reaches a box.
        positive_thresh: smallest IoU of a positive anchor, except for low-quality matches.
        has_iou_thresh: whether the assigner has such thresholds.
    """

    positives: np.ndarray
    positives_per_level: np.ndarray
    positives_per_image: np.ndarray
    negatives_per_image: np.ndarray
    num_anchors: int
    best_iou: np.ndarray
    has_positive: np.ndarray
    sides: np.ndarray
    classes: np.ndarray
    iou_thresh: float
    positive_thresh: float
    has_iou_thresh: bool

    @property
    def is_reached(self) -> np.ndarray:
        """(M,) bool: boxes that some anchor overlaps by the threshold or more."""
        return self.best_iou >= self.iou_thresh

    @property
    def score(self) -> float:
        """Share of boxes reached; in [0, 1], NaN without boxes."""
        return float(self.is_reached.mean()) if len(self.best_iou) else float("nan")


@dataclass(frozen=True)
class LabelledImage:
    """An image's anchors with their labels.

    Attributes:
        objects: in the resized image, without crowds; M of them.
        anchors: per level; R in all.
        labels: (R,) int64 in {-1, 0..K}: -1 is ignored, K is background.
        matched_idxs: (R,) int64 index of the matched box; 0 in an image without boxes.
        best_iou: (M,) float32 largest IoU of each box with any anchor.
    """

    objects: Instances
    anchors: list[Boxes]
    labels: Tensor
    matched_idxs: Tensor
    best_iou: Tensor


@dataclass(frozen=True)
class _ImageFit:
    """One image's share of an AnchorFit; P of its anchors are positive.

    Attributes:
        classes_of_positives: (P,) int64.
        levels_of_positives: (P,) int64 index of the level.
        num_negatives: anchors labelled as background.
        num_anchors: R.
        best_iou, has_positive, sides, classes: as in AnchorFit.
    """

    classes_of_positives: Tensor
    levels_of_positives: Tensor
    num_negatives: int
    num_anchors: int
    best_iou: Tensor
    has_positive: Tensor
    sides: Tensor
    classes: Tensor


def build_anchor_setup(cfg: CfgNode) -> AnchorSetup:
    """Anchors and thresholds of a detector, for images resized to `get_middle_size`.

    Raises:
        ValueError: a detector whose anchors are not known.
    """
    anchors = read_anchors(cfg)
    if anchors is None:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}: anchors are known of "
            "RetinaNets and of detectors with an RPN only"
        )
    backbone = build_backbone(cfg)
    size = get_middle_size(cfg)
    shapes = [backbone.output_shape()[name] for name in anchors.level_names]
    num_classes = read_settings(cfg).num_classes
    matcher = anchors.build_matcher()
    by_iou = IoUAssigner(matcher=matcher, num_classes=num_classes)
    own: Assigner = by_iou
    if "ASSIGNER" in get_keys_read(get_part(cfg, ARCHITECTURE)):
        own = build_assigner(cfg)
    return AnchorSetup(
        generator=build_anchor_generator(cfg, shapes),
        strides=[x.stride for x in shapes],
        level_names=anchors.level_names,
        # The last threshold of Detectron2's matcher is infinity.
        positive_thresh=matcher.thresholds[-2],
        resize=ResizeShortestEdge((size, size), cfg.INPUT.MAX_SIZE_TRAIN, "choice"),
        size_divisibility=backbone.size_divisibility,
        num_classes=num_classes,
        assigner=by_iou if own.needs_predictions else own,
        stands_in_for=type(own).__name__ if own.needs_predictions else "",
        has_iou_thresh=own.has_iou_thresh,
        reach_thresh=anchors.reach_thresh,
        boundary_thresh=anchors.boundary_thresh,
    )


def measure_anchors(
    records: Sequence[Mapping[str, Any]], setup: AnchorSetup, *, progress: str = ""
) -> AnchorFit:
    """Label the anchors of images as the detector does in training, but without flips and crops.

    The labels have classes for an RPN, too, although it is blind to them: they tell which classes
    get anchors.

    Args:
        records: Detectron2's dataset dicts with "height" and "width".
        progress: title of the progress bar on a terminal; no bar if empty.

    Raises:
        ValueError: a record without size, or a class id outside 0..K-1.
    """
    images = [_fit_image(x, setup) for x in show_progress(records, progress)]
    classes = torch.cat([x.classes_of_positives for x in images])
    levels = torch.cat([x.levels_of_positives for x in images])
    return AnchorFit(
        positives=torch.bincount(classes, minlength=setup.num_classes).numpy(),
        positives_per_level=torch.bincount(levels, minlength=len(setup.strides)).numpy(),
        positives_per_image=np.array([len(x.classes_of_positives) for x in images]),
        negatives_per_image=np.array([x.num_negatives for x in images]),
        num_anchors=sum(x.num_anchors for x in images),
        best_iou=torch.cat([x.best_iou for x in images]).numpy(),
        has_positive=torch.cat([x.has_positive for x in images]).numpy(),
        sides=torch.cat([x.sides for x in images]).numpy(),
        classes=torch.cat([x.classes for x in images]).numpy(),
        iou_thresh=setup.reach_thresh,
        positive_thresh=setup.positive_thresh,
        has_iou_thresh=setup.has_iou_thresh,
    )


def show_progress(records: Sequence[Mapping[str, Any]], title: str) -> Iterable:
    # With `disable=None`, tqdm shows a bar on a terminal only.
    is_disabled = None if title else True
    return tqdm(records, desc=title, unit=" images", disable=is_disabled, leave=False)


def _fit_image(record: Mapping[str, Any], setup: AnchorSetup) -> _ImageFit:
    image = label_record(record, setup)
    is_positive = (image.labels >= 0) & (image.labels < setup.num_classes)
    level = torch.cat([torch.full((len(x),), i) for i, x in enumerate(image.anchors)])
    matched_boxes = image.matched_idxs[is_positive]
    boxes = image.objects.gt_boxes.tensor
    # Kept for every image of a data set, so only for positives: R can be hundreds of thousands.
    return _ImageFit(
        classes_of_positives=image.labels[is_positive],
        levels_of_positives=level[is_positive],
        num_negatives=int((image.labels == setup.num_classes).sum()),
        num_anchors=len(image.labels),
        best_iou=image.best_iou,
        has_positive=torch.bincount(matched_boxes, minlength=len(boxes)) > 0,
        sides=boxes[:, 2:] - boxes[:, :2],
        classes=image.objects.gt_classes,
    )


def label_record(record: Mapping[str, Any], setup: AnchorSetup) -> LabelledImage:
    """Label the anchors of one dataset dict.

    Raises:
        ValueError: a record without size, or a class id outside 0..K-1.
    """
    objects = resize_objects(record, setup.resize)
    check_gt_classes(objects.gt_classes, setup.num_classes, str(record["file_name"]))
    anchors = setup.generate(objects.image_size)
    all_anchors = Boxes.cat(anchors)
    # What an image without boxes gets: `match_anchors` needs at least one.
    matched_idxs = torch.zeros(len(all_anchors), dtype=torch.int64)
    labels = torch.full_like(matched_idxs, setup.num_classes)
    best_iou = torch.zeros(0)
    if len(objects) > 0:
        best_iou = match_anchors(all_anchors.tensor, objects.gt_boxes.tensor).max_iou_of_box
        labels, matched_idxs, _ = setup.assigner.assign(anchors, objects)
    if setup.boundary_thresh >= 0:
        labels[~all_anchors.inside_box(objects.image_size, setup.boundary_thresh)] = -1
    return LabelledImage(objects, anchors, labels, matched_idxs, best_iou)


def get_feature_sizes(
    image_size: tuple[_Side, _Side], strides: Sequence[int], size_divisibility: int
) -> list[tuple[_Side, _Side]]:
    """(height, width) of the feature map of each stride, for a padded image.

    Every layer of stride 2, those of p6 and p7 included, rounds up, and
    ceil(ceil(x / 2) / 2) = ceil(x / 4).

    Args:
        image_size: (height, width) before padding, as numbers or as tensors of many images.
        size_divisibility: the sides are padded to a multiple of it; 0 for no padding.
    """
    divisor = max(size_divisibility, 1)
    # -(-x // y) is ceil(x / y) without floating point.
    height, width = (-(-x // divisor) * divisor for x in image_size)
    return [(-(-height // stride), -(-width // stride)) for stride in strides]


def resize_objects(record: Mapping[str, Any], resize: Augmentation) -> Instances:
    """Objects as Detectron2's DatasetMapper makes them, but without opening the image."""
    if "height" not in record or "width" not in record:
        raise ValueError(
            f"Image {record['file_name']} has no 'height' and 'width' in its dataset dict; add "
            "them where it is loaded"
        )
    # A json may have 96.0.
    height = int(record["height"])
    width = int(record["width"])
    # An array of the image's shape that takes one byte.
    transform = resize.get_transform(np.broadcast_to(np.uint8(0), (height, width, 3)))
    # For size 0, Detectron2's resize is a transform that does nothing and has no sizes.
    size = (getattr(transform, "new_h", height), getattr(transform, "new_w", width))
    objects = []
    for annotation in get_objects(record):
        needed = {key: annotation[key] for key in ("bbox", "bbox_mode", "category_id")}
        resized = transform_instance_annotations(needed, transform, size)
        # torch warns about lists of arrays.
        objects.append({**resized, "bbox": resized["bbox"].tolist()})
    return filter_empty_instances(annotations_to_instances(objects, size))
