"""Faults of data, config, model and weights, found before training."""

from focal_det.host import require_detectron2

require_detectron2()

# What a check of your own needs. None of it imports Detectron2, which may still be importing itself
# when FOCAL_DET_ENV_MODULE runs.
from .rules import add_rule  # noqa: E402
from .stages import Stage, register_check  # noqa: E402

__all__ = ["Stage", "add_rule", "register_check"]
