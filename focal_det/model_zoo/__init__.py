"""Shipped configs and trained models, with the functions of Detectron2's model_zoo."""

from focal_det.host import require_detectron2

require_detectron2()
# After the guard, despite E402: this import needs Detectron2, and its own error would be
# "No module named 'detectron2'", which does not say how to get it.
from .model_zoo import get, get_checkpoint_url, get_config, get_config_file, read_zoo  # noqa: E402
from .path_handler import register_zoo  # noqa: E402

# Shipped configs have names of the zoo in MODEL.WEIGHTS.
register_zoo()

__all__ = ["get", "get_checkpoint_url", "get_config", "get_config_file", "read_zoo"]
