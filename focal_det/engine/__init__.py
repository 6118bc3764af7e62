"""A training run: start, guarded steps, order of the data, folder, processes."""

from focal_det.host import require_detectron2

require_detectron2()
