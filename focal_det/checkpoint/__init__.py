"""What is stored of a model: reading weights without running code, saving and resuming."""

from focal_det.host import require_detectron2

require_detectron2()
