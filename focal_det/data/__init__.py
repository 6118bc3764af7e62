"""Data sets: how a few lines of yaml declare them, and how they are evaluated."""

from focal_det.host import require_detectron2

require_detectron2()
