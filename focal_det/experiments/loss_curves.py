"""Value and gradient of losses against p_t and x_t, figures 1, 5 and 6 of arXiv 1708.02002.

Any `ClsLoss` is evaluated through its interface, for one class: x is the logit of that class,
relative to a background logit of 0 if the loss has one; y = +1 for an object and -1 for background;
x_t = y x; p_t is the probability of the right answer. G is the number of points of a curve.
"""

import copy
from dataclasses import dataclass
from typing import Optional

import torch
from torch import Tensor
from torch.nn import functional as F

from focal_det.losses import ClsLoss
from focal_det.losses.targets import DenseTargets

X_MAX = 6.0  # of |x_t|
NUM_POINTS = 1201
# Relative to the largest value of a line. Two losses that are equal on paper differ by less, even
# in float32, and a line in a picture is wider.
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class LossCurves:
    """Values of one loss. Of two rows, the first is for y = +1 and the second for y = -1.

    Attributes:
        x_t: (G,) from -6 to 6, equally spaced.
        p_t: (2, G) in [0, 1].
        loss: (2, G) nats.
        grad: (2, G) derivative of the loss with respect to x_t: y times that with respect to x.
        iou: IoU of the positives; None for a loss that does not need it.
        self_normalized: whether the values are parts of a mean over the batch, all 2 G points.
        stateful: whether training changes the values; these are of the first step.
    """

    x_t: Tensor
    p_t: Tensor
    loss: Tensor
    grad: Tensor
    iou: Optional[float]
    self_normalized: bool
    stateful: bool

    @property
    def lines(self) -> list[Tensor]:
        """(3, G) p_t, loss and gradient to draw for y = +1 and, if they differ, for y = -1."""
        pos, neg = torch.stack([self.p_t, self.loss, self.grad], dim=1)
        if is_same_line(pos, neg):
            return [pos]
        return [pos, neg]


def compute_loss_curves(loss: ClsLoss, *, iou: float = 1.0) -> LossCurves:
    """Evaluate a loss on one batch of 2 G images with one anchor each, G for each y.

    Args:
        loss: built for one class; it is not modified.
        iou: IoU of the positives with their boxes, in [0, 1], for losses that need it.

    Raises:
        ValueError: `iou` out of range, or the loss is made for another number of classes.
    """
    if not 0 <= iou <= 1:
        raise ValueError(f"iou must be in [0, 1], got {iou}")
    # A stateful loss changes when it is evaluated.
    loss = copy.deepcopy(loss)
    # In float64, to avoid the fast paths: they loop over images, and here each has one anchor.
    x_t = torch.linspace(-X_MAX, X_MAX, NUM_POINTS, dtype=torch.float64)
    y = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    x = (y * x_t).requires_grad_()
    logits = F.pad(x.reshape(-1, 1, 1), (0, loss.num_outputs(1) - 1))
    values = loss([logits], _make_targets(iou, loss.needs))
    (grad,) = torch.autograd.grad(values.sum(), x)
    score = loss.scores(logits.detach())[..., 0].reshape(2, -1)
    return LossCurves(
        x_t=x_t,
        p_t=torch.stack([score[0], 1 - score[1]]),
        loss=values.detach().reshape(2, -1),
        grad=y * grad,
        iou=iou if "iou" in loss.needs else None,
        self_normalized=loss.self_normalized,
        stateful=loss.stateful,
    )


def is_same_line(a: Tensor, b: Tensor) -> bool:
    """Whether two (3, G) lines look the same in a picture."""
    size = torch.maximum(a.abs(), b.abs()).amax(dim=1, keepdim=True)
    return bool(((a - b).abs() <= _TOLERANCE * size).all())


def _make_targets(iou: float, needs: frozenset[str]) -> DenseTargets:
    """(2 G, 1) labels: G images with an object, then G with background."""
    labels = torch.tensor([0, 1]).repeat_interleave(NUM_POINTS).reshape(-1, 1)
    box = torch.tensor([0.0, 0.0, 32.0, 32.0])
    return DenseTargets.build(
        labels,
        box.expand(len(labels), 1, 4),
        num_classes=1,
        needs=needs,
        anchors=box.reshape(1, 4),
        compute_iou=lambda targets: iou * (targets.gt_labels == 0).float(),
    )
