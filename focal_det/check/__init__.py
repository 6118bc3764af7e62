"""Faults of data, config, model and weights, found before training."""

from focal_det.host import require_detectron2

from .rules import add_rule
from .stages import Stage, register_check

__all__ = ["Stage", "add_rule", "register_check"]

# After the names above, as Detectron2's import may run a file with a check of your own.
require_detectron2()
