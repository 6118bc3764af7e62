"""From anchors and ground-truth boxes to the label of every anchor.

Shapes: M boxes in an image, R anchors (all levels), K classes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple, Optional, Union

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances
from torch import Tensor

from .matching import Matches, match_anchors


class Assignment(NamedTuple):
    """What the anchors of one image should predict.

    Attributes:
        gt_labels: (R,) int64 in {-1 ignore, 0..K-1, K background}.
        matched_idxs: (R,) int64 index of the matched box; undefined where the label is not a class.
        without_anchor: (M,) bool, the boxes that overlap no anchor and are assigned none.
    """

    gt_labels: Tensor
    matched_idxs: Tensor
    without_anchor: Tensor


class Assigner(ABC):
    """Base of all assigners. A config selects one by the name of its class.

    A constructor argument `matcher` gets Detectron2's matcher with the thresholds of the config,
    `num_classes` gets K and `anchors_per_cell` the anchors at each position of a level; all others
    come from `MODEL.FOCAL_DET.ASSIGNER.ARGS.<class name>`.

    Attributes:
        needs_predictions: whether `assign` is to be called with predictions.
        has_iou_thresh: whether the thresholds of the matcher decide.
    """

    needs_predictions = False
    has_iou_thresh = False

    @abstractmethod
    def assign(
        self,
        anchors: Sequence[Boxes],
        gt_instances: Instances,
        predictions: Optional[Instances] = None,
    ) -> Assignment:
        """Label the anchors of one image; called without gradients.

        Args:
            anchors: per level; R >= 1 in all.
            gt_instances: M objects, or none, with `gt_boxes` and `gt_classes`, on the device of the
                anchors.
            predictions: of each anchor, `pred_boxes` and `scores` (R, K) in [0, 1]; None unless
                `needs_predictions` is set.
        """


class IoUAssigner(Assigner):
    """Labels by IoU like Detectron2's matcher, but a box that overlaps no anchor is assigned none.

    With such a box (zero area, NaN, off the canvas), Detectron2 makes all anchors positive: the
    box's best IoU is 0, and every anchor has that IoU.

    Args:
        matcher: supplies thresholds, their labels, and whether to allow low-quality matches.
        num_classes: K.
    """

    has_iou_thresh = True

    def __init__(self, *, matcher: Matcher, num_classes: int) -> None:
        self.matcher = matcher
        self.num_classes = num_classes

    def assign(
        self,
        anchors: Sequence[Boxes],
        gt_instances: Instances,
        predictions: Optional[Instances] = None,
    ) -> Assignment:
        gt_boxes = gt_instances.gt_boxes.tensor
        gt_classes = gt_instances.gt_classes
        all_anchors = Boxes.cat(anchors)
        # `match_anchors` needs a box.
        if len(gt_boxes) == 0:
            return make_empty_assignment(gt_classes, len(all_anchors), self.num_classes)
        matches = match_anchors(all_anchors.tensor, gt_boxes)
        return Assignment(
            gt_labels=compute_gt_labels(matches, gt_classes, self.matcher, self.num_classes),
            matched_idxs=matches.matched_idxs,
            without_anchor=matches.without_anchor,
        )


def assign_anchors(
    assigner: Assigner,
    anchors: Sequence[Boxes],
    gt_instances: Sequence[Instances],
    predictions: Optional[Sequence[Instances]] = None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Per image, labels (R,), matched boxes (R, 4) and the (M,) bool boxes without an anchor.

    Args:
        anchors: per level, those of every image.
        gt_instances, predictions: per image, see `Assigner.assign`.
    """
    gt_labels = []
    gt_boxes = []
    without_anchor = []
    for image, instances in enumerate(gt_instances):
        of_image = predictions[image] if predictions else None
        assignment = assigner.assign(anchors, instances, of_image)
        gt_labels.append(assignment.gt_labels)
        gt_boxes.append(gather_boxes(instances.gt_boxes.tensor, assignment.matched_idxs))
        without_anchor.append(assignment.without_anchor)
    return gt_labels, gt_boxes, without_anchor


def make_empty_assignment(gt_classes: Tensor, num_anchors: int, num_classes: int) -> Assignment:
    """An image without boxes: all anchors are background.

    Args:
        gt_classes: (0,) int64.
        num_anchors: R.
        num_classes: K.
    """
    return Assignment(
        gt_labels=gt_classes.new_full((num_anchors,), num_classes),
        matched_idxs=gt_classes.new_zeros(num_anchors),
        without_anchor=torch.zeros_like(gt_classes, dtype=torch.bool),
    )


def gather_boxes(gt_boxes: Tensor, matched_idxs: Tensor) -> Tensor:
    """(R, 4) matched boxes; zeros in an image without boxes.

    Args:
        gt_boxes: (M, 4) XYXY.
        matched_idxs: (R,) int64.
    """
    if len(gt_boxes) == 0:
        return gt_boxes.new_zeros(len(matched_idxs), 4)
    return gt_boxes.index_select(0, matched_idxs)


def compute_gt_labels(
    matches: Matches, gt_classes: Tensor, matcher: Matcher, num_classes: int
) -> Tensor:
    """(R,) int64 labels: by the matcher's bands of IoU, then its low-quality matches.

    Args:
        matches: of R anchors and M boxes.
        gt_classes: (M,) int64 in 0..K-1.
        matcher: as for `IoUAssigner`.
        num_classes: K.
    """
    matched_classes = gt_classes.index_select(0, matches.matched_idxs)
    label_of: dict[int, Union[int, Tensor]] = {-1: -1, 0: num_classes, 1: matched_classes}
    gt_labels = torch.full_like(matched_classes, num_classes)
    # Thresholds rise, so each band overwrites what lower bands wrote above its threshold.
    for label, low in zip(matcher.labels, matcher.thresholds):
        gt_labels = torch.where(matches.max_iou >= low, label_of[label], gt_labels)
    if matcher.allow_low_quality_matches:
        gt_labels = torch.where(matches.is_best_of_box, matched_classes, gt_labels)
    # If no box overlaps any anchor, all are background, as in an image without boxes.
    return gt_labels.masked_fill_(matches.without_anchor.all(), num_classes)


def check_gt_classes(
    gt_classes: Tensor, num_classes: int, image_name: str, key: str = "NUM_CLASSES"
) -> None:
    """Refuse class ids that the model has no output for.

    Detectron2 would train id K as background, and fail on the GPU for ids above K.

    Args:
        gt_classes: (M,) int64, on the CPU; on a GPU, the check would wait for the device.
        num_classes: K.
        image_name: for the message.
        key: key of K, for the message.

    Raises:
        ValueError: an id outside 0..K-1; names the image and the key to change.
    """
    # aminmax refuses empty tensors.
    if gt_classes.numel() == 0:
        return
    smallest, largest = (int(x) for x in gt_classes.aminmax())
    if smallest < 0 or largest >= num_classes:
        wrong = largest
        if smallest < 0:
            wrong = smallest
        raise ValueError(
            f"Image {image_name} has an object of class id {wrong}, but {key} is {num_classes}, so "
            f"ids must be in 0..{num_classes - 1}. Set NUM_CLASSES to the number of classes of the "
            "data set (background not counted), or correct the category ids."
        )
