"""Box regression loss of the positives, summed per image."""

from collections.abc import Callable

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from fvcore.nn import smooth_l1_loss
from torch import Tensor
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from focal_det.losses.targets import DenseTargets
from focal_det.messages import describe_unknown

# By the names of Detectron2's BBOX_REG_LOSS_TYPE.
_IOU_LOSSES: dict[str, Callable[..., Tensor]] = {
    "giou": generalized_box_iou_loss,
    "diou": distance_box_iou_loss,
    "ciou": complete_box_iou_loss,
}
BOX_LOSS_TYPES = ("smooth_l1", *_IOU_LOSSES)


def check_box_loss_type(loss_type: str, key: str) -> None:
    """Refuse a name that is not in BOX_LOSS_TYPES; Detectron2 notices only at the first step.

    Args:
        key: full key of the name, for the message.
    """
    if loss_type not in BOX_LOSS_TYPES:
        kind = f"box regression loss ({key})"
        raise ValueError(describe_unknown(kind, loss_type, BOX_LOSS_TYPES))


def box_loss_of_positives(
    pred_anchor_deltas: Tensor,
    anchors: Tensor,
    targets: DenseTargets,
    box2box_transform: Box2BoxTransform,
    *,
    loss_type: str,
    smooth_l1_beta: float,
) -> Tensor:
    """(P,) float32, Detectron2's dense box regression loss of each positive.

    Args:
        pred_anchor_deltas: (N, R, 4) predicted (dx, dy, dw, dh).
        anchors: (R, 4) or (N, R, 4) XYXY in absolute pixels.
        targets: labels and matched boxes of the anchors.
        box2box_transform: decodes deltas.
        loss_type: one of BOX_LOSS_TYPES; `MODEL.RETINANET.BBOX_REG_LOSS_TYPE`.
        smooth_l1_beta: where smooth L1 changes from quadratic to linear, >= 0; 0 is L1.
    """
    # In float32, as float16 overflows at areas above 65504 pixels.
    deltas = pred_anchor_deltas[targets.pos_idxs].float()
    pos_anchors = _select(anchors, targets.pos_idxs)
    gt_boxes = targets.gt_boxes[targets.pos_idxs]
    loss: Tensor
    if loss_type == "smooth_l1":
        gt_deltas = box2box_transform.get_deltas(pos_anchors, gt_boxes)
        loss = smooth_l1_loss(deltas, gt_deltas, beta=smooth_l1_beta, reduction="none").sum(dim=1)
    else:
        pred_boxes = box2box_transform.apply_deltas(deltas, pos_anchors)
        loss = _IOU_LOSSES[loss_type](pred_boxes, gt_boxes, reduction="none")
    return loss


def box_loss_per_image(
    pred_anchor_deltas: Tensor,
    anchors: Tensor,
    targets: DenseTargets,
    box2box_transform: Box2BoxTransform,
    *,
    loss_type: str,
    smooth_l1_beta: float,
) -> Tensor:
    """(N,) float32 sums of `box_loss_of_positives` per image; takes the same arguments."""
    loss = box_loss_of_positives(
        pred_anchor_deltas,
        anchors,
        targets,
        box2box_transform,
        loss_type=loss_type,
        smooth_l1_beta=smooth_l1_beta,
    )
    # index_add, because images have different numbers of positives.
    sums: Tensor = loss.new_zeros(len(targets.num_pos)).index_add(0, targets.pos_idxs[0], loss)
    return sums


def _select(anchors: Tensor, idxs: tuple[Tensor, Tensor]) -> Tensor:
    """(P, 4) anchors at two (P,) indices of image and anchor."""
    if anchors.dim() == 2:
        return anchors[idxs[1]]
    return anchors[idxs]


@torch.no_grad()
def iou_of_predictions(
    pred_anchor_deltas: Tensor,
    anchors: Tensor,
    targets: DenseTargets,
    box2box_transform: Box2BoxTransform,
) -> Tensor:
    """(N, R) float32 in [0, 1]: IoU of each positive's prediction with its matched box.

    0 for anchors that are not positive; without gradient. Arguments as for `box_loss_of_positives`.
    """
    deltas = pred_anchor_deltas[targets.pos_idxs].float()
    pred_boxes = box2box_transform.apply_deltas(deltas, _select(anchors, targets.pos_idxs))
    gt_boxes = targets.gt_boxes[targets.pos_idxs]
    # Pair by pair: `pairwise_iou` would make a matrix of all positives by all positives.
    top_left = torch.maximum(pred_boxes[:, :2], gt_boxes[:, :2])
    bottom_right = torch.minimum(pred_boxes[:, 2:], gt_boxes[:, 2:])
    intersection = (bottom_right - top_left).clamp(min=0).prod(dim=1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(dim=1) for boxes in (pred_boxes, gt_boxes)]
    iou: Tensor = pred_boxes.new_zeros(targets.gt_labels.shape)
    iou[targets.pos_idxs] = intersection / (areas[0] + areas[1] - intersection)
    return iou
