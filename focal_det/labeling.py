"""From anchors and ground-truth boxes to the label of every anchor.

Shapes: M boxes in an image, R anchors (all levels), K classes.
"""

import logging
from collections.abc import Sequence

from focal_det.host import LOGGER_NAME, put_scalar

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances
from detectron2.utils.logger import log_first_n
from torch import Tensor

from focal_det.matching import Matches, match_anchors


def check_gt_classes(gt_classes: Tensor, num_classes: int, image_name: str) -> None:
    """Refuse class ids that the model has no output for; Detectron2 would train id K as background and fail on the GPU above it.

    Args:
        gt_classes: (M,) int64, on the CPU (elsewhere this waits for the device).

    Raises:
        ValueError: an id outside 0..K-1; names the image and the key to change.
    """
    if gt_classes.numel() == 0:
        return
    smallest, largest = (int(x) for x in gt_classes.aminmax())
    if smallest < 0 or largest >= num_classes:
        wrong = smallest if smallest < 0 else largest
        raise ValueError(
            f"Image {image_name} has an object of class id {wrong}, but MODEL.RETINANET.NUM_CLASSES is {num_classes}, so ids must "
            f"be in 0..{num_classes - 1}. Set NUM_CLASSES to the number of classes of the data set (background not counted), or "
            "correct the category ids."
        )


@torch.no_grad()
def label_anchors_of_image(
    anchors: Boxes, gt_instances: Instances, matcher: Matcher, num_classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Labels of Detectron2's matcher, except that a box that overlaps no anchor gets none.

    Detectron2 hands such a box (zero area, NaN, off the canvas) all anchors: its best IoU is 0, and every anchor ties with it.

    Args:
        anchors: R anchors.
        gt_instances: M objects with `gt_boxes` and `gt_classes`, on the device of the anchors.
        matcher: thresholds, labels and low-quality matches.

    Returns:
        (R,) int64 labels in {-1 ignore, 0..K-1, K background};
        (R, 4) XYXY matched boxes, undefined where the label is not a class;
        (M,) bool, the boxes that overlap no anchor.
    """
    gt_boxes, gt_classes = gt_instances.gt_boxes.tensor, gt_instances.gt_classes
    if len(gt_boxes) == 0:
        gt_labels = gt_classes.new_full((len(anchors),), num_classes)
        return (
            gt_labels,
            torch.zeros_like(anchors.tensor),
            torch.zeros_like(gt_classes, dtype=torch.bool),
        )
    matches = match_anchors(anchors.tensor, gt_boxes)
    gt_labels = compute_gt_labels(matches, gt_classes, matcher, num_classes)
    return gt_labels, gt_boxes.index_select(0, matches.matched_idxs), matches.without_anchor


def compute_gt_labels(
    matches: Matches, gt_classes: Tensor, matcher: Matcher, num_classes: int
) -> Tensor:
    """(R,) int64 labels: the bands of the matcher's thresholds, then its low-quality matches.

    Args:
        matches: of R anchors and M boxes.
        gt_classes: (M,) int64 in 0..K-1.
        matcher: thresholds, labels and low-quality matches.
    """
    matched_classes = gt_classes.index_select(0, matches.matched_idxs)
    label_of = {-1: -1, 0: num_classes, 1: matched_classes}
    gt_labels = torch.full_like(matched_classes, num_classes)
    for label, low in zip(
        matcher.labels, matcher.thresholds
    ):  # each band ends where the next begins
        gt_labels = torch.where(matches.max_iou >= low, label_of[label], gt_labels)
    if matcher.allow_low_quality_matches:
        gt_labels = torch.where(matches.is_best_of_box, matched_classes, gt_labels)
    return gt_labels.masked_fill_(matches.without_anchor.all(), num_classes)


def report_boxes_without_anchor(
    image_names: Sequence[str], gt_boxes: Sequence[Tensor], without_anchor: Sequence[Tensor]
) -> None:
    """Warn about boxes that nothing can learn from, for the first ten images only; their number goes to the metrics.

    Args:
        image_names: to report each image by.
        gt_boxes: per image (M, 4).
        without_anchor: per image (M,) bool on the CPU, the boxes that overlap no anchor.
    """
    for name, boxes, mask in zip(image_names, gt_boxes, without_anchor):
        if not mask.any():
            continue
        boxes = boxes[mask.to(boxes.device)]
        shown = ", ".join(str([round(x, 1) for x in box]) for box in boxes[:3].tolist())
        log_first_n(
            logging.WARNING,
            f"Image {name}: {len(boxes)} ground-truth boxes overlap no anchor and are left out: {shown} (XYXY in the resized "
            "image). They have no area, are not finite or lie off the canvas; correct the annotations.",
            n=10,
            name=LOGGER_NAME,
        )
    put_scalar("focal_det/num_gt_boxes_without_anchor", sum(int(x.sum()) for x in without_anchor))
