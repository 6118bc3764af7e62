"""Classification losses for dense detectors, as functions and modules of plain torch."""

from focal_det.losses.cls_loss import ClsLoss
from focal_det.losses.focal import FocalLoss, focal_loss_from_labels, sigmoid_focal_loss
from focal_det.registry import CLS_LOSS_REGISTRY

__all__ = ["CLS_LOSS_REGISTRY", "ClsLoss", "FocalLoss", "focal_loss_from_labels", "sigmoid_focal_loss"]
