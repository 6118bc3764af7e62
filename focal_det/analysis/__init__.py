"""What a finished run shows: pictures of detections, curves, and a record of how its figures came about."""
