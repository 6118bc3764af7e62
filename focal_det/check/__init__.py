"""What is wrong with data, config, model and weights, found before training."""

from focal_det.host import require_detectron2

require_detectron2()
