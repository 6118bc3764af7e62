"""The interface of a classification loss for dense heads."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Optional, Union

import torch
from torch import Tensor, nn

from .targets import DenseTargets


class ClsLoss(nn.Module, ABC):
    """Base of all classification losses: a value per image, which a normalizer divides.

    Subclasses declare their differences in the attributes and methods below; callers never test the
    type. A config selects a loss by the name of its class. Constructor arguments are keyword-only
    and have defaults, except `num_classes`.

    Attributes:
        needs: which of "iou" and "anchors" the loss reads from its targets.
        self_normalized: True if the values are means and not sums; they are then averaged over
            images, not divided by the number of positives.
        pointwise: True if the loss of an anchor depends on that anchor alone; such a loss has the
            methods of `PointwiseClsLoss`.
        stateful: True if buffers change with every training step, see `state.is_training_step`.
        scaled_to_box_loss: True if the detector multiplies the loss of a batch by
            (box loss / loss), detached. The product has the value of the box loss, whatever the
            number of anchors.
        scales_box_loss: True if the detector multiplies the box loss of a batch by
            (loss / box loss), detached, so that this loss sets the scale of both. Not together with
            `scaled_to_box_loss`.
    """

    needs: frozenset[str] = frozenset()
    self_normalized: bool = False
    pointwise: bool = False
    stateful: bool = False
    scaled_to_box_loss: bool = False
    scales_box_loss: bool = False

    def num_outputs(self, num_classes: int) -> int:
        """Number of logits per anchor, C, for K classes.

        Raises:
            ValueError: the loss was made for another K.
        """
        return num_classes

    def bias(self, prior: Union[float, Sequence[float]], num_classes: int) -> Tensor:
        """(C,) float32 bias of `cls_score` that starts every class at its prior probability.

        Section 4.1 of arXiv 1708.02002: b = -log((1 - prior) / prior).

        Args:
            prior: in (0, 1), one for all classes or one for each.

        Raises:
            ValueError: prior out of range, or not one per class.
        """
        return get_priors(prior, num_classes).logit().float()

    def scores(self, logits: Tensor) -> Tensor:
        """(..., C) logits to (..., K) scores in [0, 1], used at inference; never in place."""
        return logits.sigmoid()

    def check_targets(self, targets: DenseTargets) -> None:
        """Refuse targets that lack a tensor the loss needs."""
        # Sorted, as the order of a set changes from process to process.
        for name in sorted(self.needs):
            if getattr(targets, name) is None:
                raise ValueError(
                    f"{type(self).__name__} needs `{name}` in its DenseTargets, got None"
                )

    @abstractmethod
    def forward(self, logits: Sequence[Tensor], targets: DenseTargets) -> Tensor:
        """Loss of each image: a sum, or a mean if `self_normalized`.

        Args:
            logits: per level (N, Ri, C) of N images, Ri anchors and C = `num_outputs(K)` logits per
                anchor; any float dtype.
            targets: labels of the same anchors.

        Returns:
            (N,) in nats, at least float32.
        """


class PointwiseClsLoss(ClsLoss):
    """Base of losses that look at one anchor at a time: a subclass defines `per_anchor`."""

    pointwise = True

    @abstractmethod
    def per_anchor(self, logits: Tensor, labels: Tensor, iou: Optional[Tensor]) -> Tensor:
        """(N, Ri) losses of one level.

        Args:
            logits: (N, Ri, C).
            labels: (N, Ri) int64 in {-1, 0..K}.
            iou: (N, Ri) in [0, 1] for losses that need "iou", else None.
        """

    def per_image(self, logits: Tensor, labels: Tensor, iou: Optional[Tensor]) -> Tensor:
        """(N,) sums of one level; a loss with a fast path overrides it."""
        return self.per_anchor(logits, labels, iou).sum(dim=1)

    def forward(self, logits: Sequence[Tensor], targets: DenseTargets) -> Tensor:
        self.check_targets(targets)
        # Level by level, as concatenating the logits would copy them.
        sums = [self.per_image(*level) for level in split_levels(logits, targets)]
        return torch.stack(sums).sum(dim=0)


def split_levels(
    logits: Sequence[Tensor], targets: DenseTargets
) -> Iterator[tuple[Tensor, Tensor, Optional[Tensor]]]:
    """Per level: logits (N, Ri, C), labels (N, Ri), and IoU (N, Ri) if the targets have it."""
    # The parts are views of the targets; nothing is copied.
    sizes = [x.shape[1] for x in logits]
    labels = targets.gt_labels.split(sizes, dim=1)
    iou: Sequence[Optional[Tensor]] = [None] * len(sizes)
    if targets.iou is not None:
        iou = targets.iou.split(sizes, dim=1)
    return zip(logits, labels, iou)


def get_priors(prior: Union[float, Sequence[float]], num_classes: int) -> Tensor:
    """(K,) float64 foreground probabilities, from one for all classes or one for each.

    Raises:
        ValueError: a prior outside (0, 1), or not one per class.
    """
    if isinstance(prior, (int, float)):
        prior = [prior] * num_classes
    priors = [float(x) for x in prior]
    if len(priors) != num_classes:
        raise ValueError(
            f"prior must have one value for each of the {num_classes} classes, got {len(priors)}"
        )
    for value in priors:
        if not 0 < value < 1:
            raise ValueError(f"prior must be in (0, 1), got {value}")
    # float64, as the logit of a probability near 1 in float32 would be coarse.
    return torch.tensor(priors, dtype=torch.float64)
