"""Programs of focal_det, one per file: `focal-det <name>` or `python -m focal_det.tools.<name>`."""
