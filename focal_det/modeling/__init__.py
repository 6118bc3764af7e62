"""What learns: the detector, its head, labels and losses on Detectron2's structures."""

from focal_det.host import require_detectron2

require_detectron2()
