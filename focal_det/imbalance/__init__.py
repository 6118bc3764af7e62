"""What a training set asks for (anchors, alpha and pi per class), and the loss of a first step."""

from focal_det.host import require_detectron2

require_detectron2()
