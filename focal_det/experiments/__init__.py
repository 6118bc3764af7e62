"""What is measured, in numbers: records of runs, timings, sweeps, curves of losses."""
