"""Classification losses for dense detectors, as functions and modules of plain torch."""

from focal_det.losses.asymmetric import AsymmetricLoss, asymmetric_loss_per_anchor
from focal_det.losses.cls_loss import ClsLoss, PointwiseClsLoss
from focal_det.losses.equalized_focal import EqualizedFocalLoss
from focal_det.losses.focal import (
    FocalLoss,
    focal_loss_from_labels,
    focal_loss_per_anchor,
    sigmoid_focal_loss,
)
from focal_det.losses.focal_star import FocalStarLoss, focal_star_loss_per_anchor
from focal_det.losses.ghm import GHMCLoss
from focal_det.losses.hinge import HingeLoss, hinge_loss_per_anchor
from focal_det.losses.ohem import OHEMLoss, mine_hard_anchors
from focal_det.losses.poly_focal import PolyFocalLoss, poly_focal_loss_per_anchor
from focal_det.losses.quality_focal import QualityFocalLoss, quality_focal_loss_per_anchor
from focal_det.losses.softmax_focal import SoftmaxFocalLoss, softmax_focal_loss_per_anchor
from focal_det.losses.varifocal import VarifocalLoss, varifocal_loss_per_anchor
from focal_det.registry import CLS_LOSS_REGISTRY

__all__ = [
    "CLS_LOSS_REGISTRY",
    "AsymmetricLoss",
    "ClsLoss",
    "EqualizedFocalLoss",
    "FocalLoss",
    "FocalStarLoss",
    "GHMCLoss",
    "HingeLoss",
    "OHEMLoss",
    "PointwiseClsLoss",
    "PolyFocalLoss",
    "QualityFocalLoss",
    "SoftmaxFocalLoss",
    "VarifocalLoss",
    "asymmetric_loss_per_anchor",
    "focal_loss_from_labels",
    "focal_loss_per_anchor",
    "focal_star_loss_per_anchor",
    "hinge_loss_per_anchor",
    "mine_hard_anchors",
    "poly_focal_loss_per_anchor",
    "quality_focal_loss_per_anchor",
    "sigmoid_focal_loss",
    "softmax_focal_loss_per_anchor",
    "varifocal_loss_per_anchor",
]
