"""A trained model in use."""

from focal_det.host import require_detectron2

require_detectron2()
