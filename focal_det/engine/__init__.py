"""A training run: its start, guarded steps, data order, output folder and processes."""

from focal_det.host import require_detectron2

require_detectron2()
