"""focal_det: dense object detectors under extreme class imbalance, as components for Detectron2."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_EXPORTS = {
    "FocalRetinaNet": "focal_det.modeling.retinanet",
    "FocalRetinaNetHead": "focal_det.modeling.retinanet_head",
    "add_focal_det_config": "focal_det.config",
    "setup_environment": "focal_det.env",
    "sigmoid_focal_loss": "focal_det.losses",
    "focal_loss_from_labels": "focal_det.losses",
}
__all__ = ["__version__", *_EXPORTS]


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'focal_det' has no attribute {name!r}")
    module = _EXPORTS[name]
    if module != "focal_det.losses":
        import_module("focal_det.host")  # Detectron2 as a whole, before any module that needs it
    return getattr(import_module(module), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_EXPORTS])
