"""Targets and losses of a dense detector, from its predictions and the labels of its anchors.

Plain functions, so that any head over anchors can use them. The architecture selects the losses;
the classification loss returns one value per image; the normalizer supplies the divisor.

Shapes: N images, R anchors per image (all levels), Ri anchors of a level, K classes, C logits per
anchor (see `ClsLoss`; not always K).
"""

from collections.abc import Collection, Sequence

from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor

from focal_det.losses import ClsLoss
from focal_det.losses.targets import DenseTargets

from .box_loss import box_loss_per_image, iou_of_predictions

# A loss below this is scaled up, but not all the way to the value of the other loss.
_MIN_LOSS = 1e-6


def build_targets(
    gt_labels: Tensor,
    gt_boxes: Tensor,
    num_classes: int,
    *,
    anchors: Tensor,
    pred_anchor_deltas: Tensor,
    box2box_transform: Box2BoxTransform,
    needs: Collection[str],
) -> DenseTargets:
    """The targets of a batch, with the IoU of its predictions if a loss needs it.

    Args:
        gt_labels: (N, R) int64 in {-1, 0..K}: -1 is ignored, K is background.
        gt_boxes: (N, R, 4) XYXY matched boxes in absolute pixels.
        num_classes: K.
        anchors: (R, 4), or (N, R, 4) for proposals, XYXY in absolute pixels.
        pred_anchor_deltas: (N, R, 4) predicted (dx, dy, dw, dh).
        box2box_transform: decodes deltas.
        needs: optional fields to fill in: a subset of {"iou", "anchors"}.
    """

    # Lazy: decoding the predictions is slow, and only some losses use the IoU.
    def compute_iou(targets: DenseTargets) -> Tensor:
        return iou_of_predictions(pred_anchor_deltas, anchors, targets, box2box_transform)

    return DenseTargets.build(
        gt_labels,
        gt_boxes,
        num_classes,
        needs=needs,
        anchors=anchors,
        compute_iou=compute_iou,
    )


def compute_dense_losses(
    pred_logits: Sequence[Tensor],
    pred_anchor_deltas: Tensor,
    anchors: Tensor,
    targets: DenseTargets,
    divisor: Tensor,
    *,
    cls_loss: ClsLoss,
    box2box_transform: Box2BoxTransform,
    box_loss_type: str,
    smooth_l1_beta: float,
) -> tuple[Tensor, Tensor]:
    """Normalized classification loss and box regression loss of a batch.

    Args:
        pred_logits: per level (N, Ri, C).
        pred_anchor_deltas: (N, R, 4).
        anchors: (R, 4), or (N, R, 4) for proposals, XYXY in absolute pixels.
        targets: of `build_targets`, for this `cls_loss`.
        divisor: () or (N,), of a normalizer.
        cls_loss: sums the classification loss per image.
        box2box_transform: decodes deltas.
        box_loss_type, smooth_l1_beta: see `box_loss_of_positives`.

    Returns:
        Scalar classification loss (nats) and scalar box loss (in its own unit).
    """
    # One divisor for both losses, as in the paper; two would change their balance.
    box_sums = box_loss_per_image(
        pred_anchor_deltas,
        anchors,
        targets,
        box2box_transform,
        loss_type=box_loss_type,
        smooth_l1_beta=smooth_l1_beta,
    )
    loss_cls = normalize_cls_sums(cls_loss, cls_loss(pred_logits, targets), divisor)
    return _balance(cls_loss, loss_cls, (box_sums / divisor).sum())


def _balance(cls_loss: ClsLoss, loss_cls: Tensor, loss_box: Tensor) -> tuple[Tensor, Tensor]:
    """Both () losses, one scaled to the value of the other if `cls_loss` asks for it."""
    if cls_loss.scaled_to_box_loss:
        return _scale(loss_cls, loss_box), loss_box
    if cls_loss.scales_box_loss:
        return loss_cls, _scale(loss_box, loss_cls)
    return loss_cls, loss_box


def _scale(loss: Tensor, goal: Tensor) -> Tensor:
    """A () loss, scaled to the value of `goal` by a factor without gradient."""
    # Clamped: the ratio would be NaN if both losses were 0, and infinite if `loss` were tiny.
    return loss * (goal.detach() / loss.detach().clamp(min=_MIN_LOSS))


def normalize_cls_sums(cls_loss: ClsLoss, sums: Tensor, divisor: Tensor) -> Tensor:
    """() loss of a batch from the (N,) sums of a classification loss and a () or (N,) divisor."""
    # Already per-image means: dividing by the number of positives would normalize twice.
    if cls_loss.self_normalized:
        return sums.mean()
    return (sums / divisor).sum()
