"""What `focal-det train` adds to Detectron2's training: guarded steps, healthy checkpoints, data order; and the telemetry."""

from focal_det.host import require_detectron2

require_detectron2()
