"""What `focal-det train` adds to Detectron2's training: guarded steps, healthy checkpoints, data order; and the telemetry."""
