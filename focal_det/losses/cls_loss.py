"""The interface of a classification loss for dense heads."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from focal_det.targets import DenseTargets


class ClsLoss(nn.Module):
    """Base of all classification losses: sums per image, never divides.

    A subclass says what makes it different; nobody asks for its class. Register it with `@CLS_LOSS_REGISTRY.register()` under
    its own name. Constructor arguments are keyword-only with defaults; those called `alpha` and `gamma` are filled from
    `MODEL.RETINANET.FOCAL_LOSS_ALPHA` and `FOCAL_LOSS_GAMMA`, the others from `MODEL.FOCAL_DET.CLS_LOSS.ARGS.<name>`.

    Attributes:
        needs: which of "iou" and "anchors" the loss reads from its targets.
        self_normalized: True if the sums are means already; they are then averaged over images, not divided by positives.
    """

    needs: frozenset[str] = frozenset()
    self_normalized: bool = False

    def num_outputs(self, num_classes: int) -> int:
        """Number of logits per anchor, C, for K classes."""
        return num_classes

    def bias(self, prior: float, num_classes: int) -> Tensor:
        """(C,) float32: initial bias of `cls_score` so that every anchor starts with foreground probability `prior`.

        Section 4.1 of arXiv 1708.02002: b = -log((1 - prior) / prior).

        Args:
            prior: in (0, 1).

        Raises:
            ValueError: prior out of range.
        """
        if not 0 < prior < 1:
            raise ValueError(f"prior must be in (0, 1), got {prior}; in a config it is MODEL.RETINANET.PRIOR_PROB")
        return torch.full((self.num_outputs(num_classes),), -math.log((1 - prior) / prior))

    def scores(self, logits: Tensor) -> Tensor:
        """(..., C) logits to (..., K) scores in [0, 1], used at inference; never in place."""
        return logits.sigmoid()

    def forward(self, logits: Sequence[Tensor], targets: DenseTargets) -> Tensor:
        """Sum of the loss of each image.

        Args:
            logits: per level (N, Ri, C), any float dtype; the sum of Ri is R.
            targets: labels of the same anchors.

        Returns:
            (N,) float32 in nats.
        """
        raise NotImplementedError
