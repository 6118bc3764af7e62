"""The interface of a classification loss for dense heads."""

from collections.abc import Iterator, Sequence
from typing import Optional, Union

import torch
from torch import Tensor, nn

from focal_det.targets import DenseTargets


class ClsLoss(nn.Module):
    """Base of all classification losses: sums per image, never divides.

    A subclass says what makes it different; nobody asks for its class. Register it with `@CLS_LOSS_REGISTRY.register()` under
    its own name. Constructor arguments are keyword-only; those called `alpha`, `gamma` and `num_classes` are filled from
    `MODEL.RETINANET.FOCAL_LOSS_ALPHA`, `FOCAL_LOSS_GAMMA` and `NUM_CLASSES`, the others from
    `MODEL.FOCAL_DET.CLS_LOSS.ARGS.<name>` and have defaults.

    Attributes:
        needs: which of "iou" and "anchors" the loss reads from its targets.
        self_normalized: True if the sums are means already; they are then averaged over images, not divided by positives.
        pointwise: True if an anchor's loss depends on that anchor alone.
        stateful: True if buffers change with every step that trains: in training mode with gradients
            enabled, see `focal_det.buffers.is_training_step`.
    """

    needs: frozenset[str] = frozenset()
    self_normalized: bool = False
    pointwise: bool = False
    stateful: bool = False

    def num_outputs(self, num_classes: int) -> int:
        """Number of logits per anchor, C, for K classes; ValueError if the loss was made for another K."""
        return num_classes

    def bias(self, prior: Union[float, Sequence[float]], num_classes: int) -> Tensor:
        """(C,) float32: initial bias of `cls_score` so that every anchor starts with probability `prior` in each class.

        Section 4.1 of arXiv 1708.02002: b = -log((1 - prior) / prior).

        Args:
            prior: in (0, 1), for every class or one for each.

        Raises:
            ValueError: prior out of range, or not one per class.
        """
        return get_priors(prior, num_classes).logit().float()

    def scores(self, logits: Tensor) -> Tensor:
        """(..., C) logits to (..., K) scores in [0, 1], used at inference; never in place."""
        return logits.sigmoid()

    def check_targets(self, targets: DenseTargets) -> None:
        """Refuse targets without what the loss needs."""
        for name in sorted(self.needs):
            if getattr(targets, name) is None:
                raise ValueError(
                    f"{type(self).__name__} needs `{name}` in its DenseTargets, got None"
                )

    def forward(self, logits: Sequence[Tensor], targets: DenseTargets) -> Tensor:
        """Sum of the loss of each image.

        Args:
            logits: per level (N, Ri, C), any float dtype; the sum of Ri is R.
            targets: labels of the same anchors.

        Returns:
            (N,) float32 in nats.
        """
        raise NotImplementedError


class PointwiseClsLoss(ClsLoss):
    """A loss that looks at one anchor at a time: a subclass gives the loss of each anchor of a level."""

    pointwise = True

    def per_anchor(self, logits: Tensor, labels: Tensor, iou: Optional[Tensor]) -> Tensor:
        """(N, Ri) losses of one level.

        Args:
            logits: (N, Ri, C).
            labels: (N, Ri) int64 in {-1, 0..K}.
            iou: (N, Ri) in [0, 1] for losses that need "iou", else None.
        """
        raise NotImplementedError

    def per_image(self, logits: Tensor, labels: Tensor, iou: Optional[Tensor]) -> Tensor:
        """(N,) sums of one level; a loss with a fast path for them has it here."""
        return self.per_anchor(logits, labels, iou).sum(dim=1)

    def forward(self, logits: Sequence[Tensor], targets: DenseTargets) -> Tensor:
        self.check_targets(targets)
        return torch.stack([self.per_image(*level) for level in split_levels(logits, targets)]).sum(
            dim=0
        )


def split_levels(
    logits: Sequence[Tensor], targets: DenseTargets
) -> Iterator[tuple[Tensor, Tensor, Optional[Tensor]]]:
    """Per level: logits (N, Ri, C), labels (N, Ri), and IoU (N, Ri) if the targets have it."""
    sizes = [x.shape[1] for x in logits]
    labels = targets.gt_labels.split(sizes, dim=1)
    iou = [None] * len(sizes) if targets.iou is None else targets.iou.split(sizes, dim=1)
    return zip(logits, labels, iou)


def get_priors(prior: Union[float, Sequence[float]], num_classes: int) -> Tensor:
    """(K,) float64 foreground probabilities from one for all classes or one for each.

    Raises:
        ValueError: outside (0, 1), or not one per class; names the config key.
    """
    if isinstance(prior, (int, float)):
        key, priors = "MODEL.RETINANET.PRIOR_PROB", [float(prior)] * num_classes
    else:
        key, priors = "MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS", [float(x) for x in prior]
    if len(priors) != num_classes:
        raise ValueError(
            f"{key} must have one value for each of the {num_classes} classes, got {len(priors)}"
        )
    for value in priors:
        if not 0 < value < 1:
            raise ValueError(f"prior must be in (0, 1), got {value}; in a config it is {key}")
    return torch.tensor(priors, dtype=torch.float64)
