"""Stored models: weights read without running code, checkpoints saved and resumed."""

from focal_det.host import require_detectron2

require_detectron2()
