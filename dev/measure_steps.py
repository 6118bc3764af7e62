"""Seconds and memory of a training step of each row of a rows file, in turn in one process:

    python dev/measure_steps.py projects/TwoStage/rows.json digits

They are written to the folder results beside the rows file. Rows that train equally long take their
iterations from these figures.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from detectron2.utils.events import EventStorage

from focal_det.engine.trainer import Trainer
from focal_det.experiments.records import make_origin
from focal_det.experiments.sweep_rows import load_rows, read_rows
from focal_det.experiments.timing import time_alternating
from focal_det.files import write_json

ROUNDS = 15


def measure_steps(rows_file: Path, table: str) -> dict[str, Any]:
    """Median seconds and peak bytes of the tensors of a training step, for each row of a table."""
    trainers = {}
    with tempfile.TemporaryDirectory() as folder, EventStorage() as storage:
        # No weights are loaded: their files may not have been made yet, and steps take as long.
        for row, cfg in load_rows(read_rows(rows_file)[table], ["OUTPUT_DIR", folder]).items():
            trainers[row.name] = Trainer(cfg)
            trainers[row.name].storage = storage
        steps = {name: trainer.run_step for name, trainer in trainers.items()}
        timings = time_alternating(steps, rounds=ROUNDS, desc="steps")
    rows = {}
    for name, timing in timings.items():
        if timing.error:
            raise RuntimeError(f"{name}: {timing.error}")
        rows[name] = {"seconds": timing.median, "peak_bytes": timing.peak_bytes}
    return {"rounds": ROUNDS, "rows": rows}


def main(rows_file: str, table: str) -> None:
    origin = make_origin(f"python dev/measure_steps.py {rows_file} {table}")
    content = {**origin, **measure_steps(Path(rows_file), table)}
    write_json(Path(rows_file).parent / "results" / f"{table}_steps.json", content)
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
