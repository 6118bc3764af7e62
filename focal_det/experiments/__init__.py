"""What is measured, in numbers: records of runs, timings, sweeps, curves of losses."""

# Detectron2 is not required here: the curves of losses need torch alone.
