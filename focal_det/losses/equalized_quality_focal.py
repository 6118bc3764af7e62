"""Equalized quality focal loss, by the authors of "Equalized Focal Loss" (arXiv 2201.02593).

As in their project United-Perception (formerly EOD), `up/tasks/det/plugins/efl`.
"""

from collections.abc import Sequence
from typing import Optional

from torch import Tensor

from .arguments import check_tensor_range
from .equalized_focal import EqualizedLoss
from .per_anchor import Weight
from .quality_focal import quality_slope, quality_term
from .targets import DenseTargets


class EqualizedQualityFocalLoss(EqualizedLoss):
    """Quality focal loss with more focus and weight for classes with little gradient of positives.

    (gamma_k / gamma) |p - y|^gamma_k CE(x, y) for class k, where y is the IoU of the predicted box
    if k is the anchor's own class, else 0; see `EqualizedLoss` for gamma_k. Before the first step,
    and always with a scale of 0, it is the quality focal loss.

    Args:
        num_classes: K.
        gamma: focusing parameter of a balanced class, > 0; the beta of quality focal loss.
        scale: see `EqualizedLoss`. The default of 4 is that of the authors' configs for YOLOX on
            LVIS; their code's default is 8.
    """

    needs = frozenset({"iou"})

    def __init__(self, *, num_classes: int, gamma: float = 2.0, scale: float = 4.0) -> None:
        # The authors' code has no alpha, either.
        super().__init__(num_classes=num_classes, alpha=-1, gamma=gamma, scale=scale)

    def extra_repr(self) -> str:
        return f"num_classes={len(self.pos_grad)}, gamma={self.gamma}, scale={self.scale}"

    def forward(self, logits: Sequence[Tensor], targets: DenseTargets) -> Tensor:
        self.check_targets(targets)
        assert targets.iou is not None
        check_tensor_range("iou", targets.iou, 0, 1)
        return super().forward(logits, targets)

    def positive_term(self, x: Tensor, iou: Optional[Tensor], gamma: Weight) -> Tensor:
        assert iou is not None  # `forward` has checked `needs`
        return quality_term(x, iou.to(x.dtype), gamma)

    def positive_slope(self, x: Tensor, iou: Optional[Tensor], gamma: Weight) -> Tensor:
        assert iou is not None
        return quality_slope(x, iou.to(x.dtype), gamma)
