"""What a training set asks for: anchors, alpha and pi per class; and its first loss."""

from focal_det.host import require_detectron2

require_detectron2()
