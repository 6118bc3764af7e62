"""Dense object detectors under extreme class imbalance, as components for Detectron2."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "FocalRetinaNet": "focal_det.modeling.retinanet",
    "FocalRetinaNetHead": "focal_det.modeling.retinanet_head",
    "FocalRPN": "focal_det.modeling.rpn",
    "FocalROIHeads": "focal_det.modeling.roi_heads",
    "FocalRes5ROIHeads": "focal_det.modeling.roi_heads",
    "FocalCascadeROIHeads": "focal_det.modeling.roi_heads",
    "FocalFastRCNNOutputLayers": "focal_det.modeling.fast_rcnn",
    "Predictor": "focal_det.inference.predictor",
    "load_trained": "focal_det.inference.predictor",
    "CLS_LOSS_REGISTRY": "focal_det.registry",
    "NORMALIZER_REGISTRY": "focal_det.registry",
    "ASSIGNER_REGISTRY": "focal_det.registry",
    "add_focal_det_config": "focal_det.config",
    "setup_environment": "focal_det.env",
    "sigmoid_focal_loss": "focal_det.losses",
    "focal_loss_from_labels": "focal_det.losses",
}
_LIGHT = ("focal_det.losses", "focal_det.registry")
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'focal_det' has no attribute {name!r}")
    module = _EXPORTS[name]
    if module not in _LIGHT:
        # All of Detectron2 comes first: where DETECTRON2_ENV_MODULE is focal_det.env, Detectron2
        # imports parts of focal_det during its own import.
        import_module("focal_det.host").require_detectron2()
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
