"""From anchors and ground-truth boxes to the label of every anchor.

Shapes: M boxes in an image, R anchors (all levels), K classes.
"""

import focal_det.host  # noqa: F401  (first: says how to get Detectron2)

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor


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
    iou = pairwise_iou(gt_instances.gt_boxes, anchors)
    reachable = (iou > 0).any(dim=1)
    if not reachable.all():
        iou, gt_instances = iou[reachable], gt_instances[reachable]
    matched_idxs, match_labels = matcher(iou)
    if len(gt_instances) == 0:
        gt_labels = torch.full_like(matched_idxs, num_classes)
        return gt_labels, torch.zeros_like(anchors.tensor), ~reachable
    gt_labels = gt_instances.gt_classes[matched_idxs]
    gt_labels[match_labels == 0] = num_classes
    gt_labels[match_labels == -1] = -1
    return gt_labels, gt_instances.gt_boxes.tensor[matched_idxs], ~reachable
