"""A training run: what starts and ends it, guarded steps, data order, its folder and processes."""

from focal_det.host import require_detectron2

require_detectron2()
