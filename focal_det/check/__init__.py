"""Faults of data, config, model and weights, found before training."""

from focal_det.host import require_detectron2

from .rules import add_rule
from .stages import Stage, register_check

__all__ = ["Stage", "add_rule", "register_check"]

# Last, as importing Detectron2 may run a file of yours that imports the names above.
require_detectron2()
