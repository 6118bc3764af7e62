"""Classification losses for dense detectors, as functions and modules of plain torch."""

from typing import Any

from .asymmetric import AsymmetricLoss, asymmetric_loss_per_anchor
from .base import ClsLoss, PointwiseClsLoss
from .equalized_focal import EqualizedFocalLoss, EqualizedLoss
from .equalized_quality_focal import EqualizedQualityFocalLoss
from .focal import FocalLoss, focal_loss_from_labels, sigmoid_focal_loss
from .focal_star import FocalStarLoss
from .ghm import GHMCLoss
from .hinge import HingeLoss, hinge_loss_per_anchor
from .matchability_aware import MatchabilityAwareLoss, matchability_aware_loss_per_anchor
from .ohem import OHEMLoss, mine_hard_anchors
from .per_anchor import focal_loss_per_anchor, focal_star_loss_per_anchor
from .poly_focal import PolyFocalLoss, poly_focal_loss_per_anchor
from .quality_focal import QualityFocalLoss, quality_focal_loss_per_anchor
from .rank_sort import RankSortLoss
from .sampling_free import SamplingFreeLoss
from .softmax_focal import SoftmaxFocalLoss, softmax_focal_loss_per_anchor
from .varifocal import VarifocalLoss, varifocal_loss_per_anchor

__all__ = [
    "AsymmetricLoss",
    "ClsLoss",
    "EqualizedFocalLoss",
    "EqualizedLoss",
    "EqualizedQualityFocalLoss",
    "FocalLoss",
    "FocalStarLoss",
    "GHMCLoss",
    "HingeLoss",
    "MatchabilityAwareLoss",
    "OHEMLoss",
    "PointwiseClsLoss",
    "PolyFocalLoss",
    "QualityFocalLoss",
    "RankSortLoss",
    "SamplingFreeLoss",
    "SoftmaxFocalLoss",
    "VarifocalLoss",
    "asymmetric_loss_per_anchor",
    "focal_loss_from_labels",
    "focal_loss_per_anchor",
    "focal_star_loss_per_anchor",
    "hinge_loss_per_anchor",
    "matchability_aware_loss_per_anchor",
    "mine_hard_anchors",
    "poly_focal_loss_per_anchor",
    "quality_focal_loss_per_anchor",
    "sigmoid_focal_loss",
    "softmax_focal_loss_per_anchor",
    "varifocal_loss_per_anchor",
]


def __getattr__(name: str) -> Any:
    # Not imported above: the registry lies outside this folder and needs fvcore, while importing
    # this folder needs only torch.
    if name != "CLS_LOSS_REGISTRY":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from focal_det.registry import CLS_LOSS_REGISTRY

    return CLS_LOSS_REGISTRY
