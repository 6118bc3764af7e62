"""What goes in: data sets declared in a few lines of yaml, and how they are evaluated."""

from focal_det.host import require_detectron2

require_detectron2()
