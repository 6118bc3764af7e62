"""Shipped configs and trained models, with the functions of Detectron2's model_zoo."""

from focal_det.host import require_detectron2

require_detectron2()
from .model_zoo import get, get_checkpoint_url, get_config, get_config_file, read_zoo  # noqa: E402

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file", "read_zoo"]
