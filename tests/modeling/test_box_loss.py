"""The box loss per image, whose sum is Detectron2's dense box regression loss."""

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform, _dense_box_regression_loss
from detectron2.structures import Boxes, pairwise_iou

from focal_det.losses.targets import DenseTargets
from focal_det.modeling.box_loss import BOX_LOSS_TYPES, box_loss_per_image, iou_of_predictions

TRANSFORM = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))


@pytest.fixture
def dense():
    """Anchors (R, 4), deltas (N, R, 4) and targets of three images, the last without positives."""
    corner, size = torch.rand(60, 2) * 100, torch.rand(60, 2) * 40 + 10
    anchors = torch.cat([corner, corner + size], dim=1)
    gt_boxes = (anchors + torch.randn(3, 60, 4) * 3).clone()
    gt_labels = torch.randint(-1, 6, (3, 60))
    gt_labels[2] = torch.where(gt_labels[2] < 0, -1, 5)
    return anchors, torch.randn(3, 60, 4) * 0.3, DenseTargets.build(gt_labels, gt_boxes, 5)


def detectron2_loss(anchors, deltas, targets, loss_type, beta, images=slice(None)):
    labels = targets.gt_labels[images]
    pos_mask = (labels >= 0) & (labels < 5)
    boxes = list(targets.gt_boxes[images])
    return _dense_box_regression_loss(
        [Boxes(anchors)], TRANSFORM, [deltas[images]], boxes, pos_mask, loss_type, beta
    )


@pytest.mark.parametrize("loss_type", BOX_LOSS_TYPES)
@pytest.mark.parametrize("beta", [0.0, 0.1])
def test_each_image_has_detectron2s_loss_and_gradient(dense, loss_type, beta):
    anchors, deltas, targets = dense
    try:
        detectron2_loss(anchors, deltas, targets, loss_type, beta)
    except ValueError:
        pytest.skip(f"this Detectron2 has no {loss_type}")
    ours, theirs = deltas.clone().requires_grad_(), deltas.clone().requires_grad_()
    loss = box_loss_per_image(
        ours, anchors, targets, TRANSFORM, loss_type=loss_type, smooth_l1_beta=beta
    )
    for i in range(3):
        want = detectron2_loss(anchors, deltas, targets, loss_type, beta, slice(i, i + 1))
        torch.testing.assert_close(loss[i], want, rtol=1e-4, atol=1e-4)
    loss.sum().backward()
    detectron2_loss(anchors, theirs, targets, loss_type, beta).backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("loss_type", BOX_LOSS_TYPES)
def test_no_positives_at_all_give_zero_with_a_gradient(dense, loss_type):
    anchors, deltas, _ = dense
    targets = DenseTargets.build(torch.full((3, 60), 5), torch.zeros(3, 60, 4), 5)
    deltas.requires_grad_()
    loss = box_loss_per_image(
        deltas, anchors, targets, TRANSFORM, loss_type=loss_type, smooth_l1_beta=0.0
    )
    loss.sum().backward()
    assert loss.tolist() == [0, 0, 0] and torch.all(deltas.grad == 0)


def test_iou_of_predictions_is_that_of_the_decoded_boxes(dense):
    anchors, deltas, targets = dense
    iou = iou_of_predictions(deltas, anchors, targets, TRANSFORM)
    for i in range(3):
        boxes = TRANSFORM.apply_deltas(deltas[i], anchors)
        want = pairwise_iou(Boxes(boxes), Boxes(targets.gt_boxes[i])).diagonal()
        pos_mask = (targets.gt_labels[i] >= 0) & (targets.gt_labels[i] < 5)
        torch.testing.assert_close(iou[i], torch.where(pos_mask, want, 0.0))
