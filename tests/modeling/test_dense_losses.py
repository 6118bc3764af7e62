"""Losses that set each other's scale: the value of one, the direction of the other's gradient."""

import math

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform

from focal_det.losses import ClsLoss
from focal_det.losses.targets import DenseTargets
from focal_det.modeling.dense_losses import compute_dense_losses

TRANSFORM = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
ANCHORS = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])


class SumLoss(ClsLoss):
    """The sum of the logits of each image."""

    def forward(self, logits, targets):
        return torch.cat(list(logits), dim=1).sum(dim=(1, 2))


class Scaled(SumLoss):
    scaled_to_box_loss = True


class Scaling(SumLoss):
    scales_box_loss = True


def compute(cls_loss, logits, deltas, *, has_object=True):
    """Both losses, of an image with one object or none."""
    labels = torch.tensor([[0 if has_object else 1, 1]])
    targets = DenseTargets.build(labels, ANCHORS[None], 1)
    return compute_dense_losses(
        [logits],
        deltas,
        ANCHORS,
        targets,
        torch.tensor(4.0),
        cls_loss=cls_loss,
        box2box_transform=TRANSFORM,
        box_loss_type="smooth_l1",
        smooth_l1_beta=0.0,
    )


def compute_with_grads(cls_loss, logit=1.0, delta=0.5, **kwargs):
    """Both values, then the gradients of their sum."""
    logits = torch.full((1, 2, 1), logit, requires_grad=True)
    deltas = torch.full((1, 2, 4), delta, requires_grad=True)
    losses = compute(cls_loss, logits, deltas, **kwargs)
    grads = torch.autograd.grad(sum(losses), [logits, deltas])
    return [x.item() for x in losses], *grads


def test_a_loss_scaled_to_the_box_loss_has_its_value():
    (cls_value, box_value), cls_grad, box_grad = compute_with_grads(SumLoss(), logit=8.0)
    (scaled, box_after), scaled_grad, box_grad_after = compute_with_grads(Scaled(), logit=8.0)
    assert (cls_value, box_value, scaled, box_after) == (4.0, 0.5, 0.5, 0.5)
    # The ratio is a constant: the gradient keeps its direction, and that of the box loss is as is.
    torch.testing.assert_close(scaled_grad, cls_grad / 8)
    torch.testing.assert_close(box_grad_after, box_grad)


def test_a_loss_that_scales_the_box_loss_keeps_its_own():
    _, cls_grad, box_grad = compute_with_grads(SumLoss(), logit=8.0)
    (cls_value, scaled), cls_grad_after, scaled_grad = compute_with_grads(Scaling(), logit=8.0)
    assert (cls_value, scaled) == (4.0, 4.0)
    torch.testing.assert_close(cls_grad_after, cls_grad)
    torch.testing.assert_close(scaled_grad, 8 * box_grad)


@pytest.mark.parametrize("cls_loss", [Scaled(), Scaling()])
@pytest.mark.parametrize(
    ("logit", "delta", "has_object"),
    [(0.0, 0.5, True), (1.0, 0.0, True), (0.0, 0.0, True), (1.0, 0.5, False), (1e-30, 0.5, True)],
)
def test_losses_of_zero_stay_finite(cls_loss, logit, delta, has_object):
    values, *grads = compute_with_grads(cls_loss, logit, delta, has_object=has_object)
    assert all(map(math.isfinite, values)) and min(values) <= 1e-20
    assert all(x.isfinite().all() for x in grads)


@pytest.mark.parametrize("cls_loss", [Scaled(), Scaling()])
def test_nan_in_either_loss_is_not_hidden(cls_loss):
    for logit, delta in ((math.nan, 0.5), (1.0, math.nan)):
        values, *_ = compute_with_grads(cls_loss, logit, delta)
        assert math.isnan(sum(values))
