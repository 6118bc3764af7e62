"""What learns: the detector, its head, labels and losses on Detectron2's structures."""

from focal_det.host import require_detectron2

# Before any module of the package, so that a missing Detectron2 is explained.
require_detectron2()
