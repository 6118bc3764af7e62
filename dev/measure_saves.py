"""The cost of safe checkpoints, and of the iterations between them, next to Detectron2's.

python dev/measure_saves.py
"""

import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import numpy as np
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import build_detection_train_loader
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import nn

from focal_det.checkpoint.checkpointer import HealthyCheckpointer
from focal_det.checkpoint.last import find_last_checkpoint
from focal_det.engine.trainer import Trainer
from focal_det.env import load_config
from focal_det.experiments.records import make_origin
from focal_det.model_zoo import get_config_file

RECORD = Path(__file__).parent.parent / "benchmarks" / "saves" / "cpu.json"
NUM_ROUNDS = 15
NUM_ITERS = 20  # of a round


def time_call(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure_in_turn(calls: Mapping[str, Callable[[], Any]]) -> dict[str, list[float]]:
    """Seconds of each call in each round; each is first, second and so on in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for index in range(NUM_ROUNDS + 1):
        for name in np.roll(list(calls), index).tolist():
            seconds[name].append(time_call(calls[name]))
        print({name: round(times[-1], 4) for name, times in seconds.items()}, flush=True)
    # The first round was the warm-up.
    return {name: times[1:] for name, times in seconds.items()}


def measure_saves() -> dict[str, Any]:
    """Saving and reading a checkpoint of 300 MB on the same disk."""
    model = nn.Sequential(*(nn.Linear(1000, 1000, bias=False) for _ in range(75)))
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        checkpointers = {}
        for name, kind in (("detectron2", DetectionCheckpointer), ("ours", HealthyCheckpointer)):
            (Path(folder) / name).mkdir()
            checkpointers[name] = kind(model, str(Path(folder) / name))
            checkpointers[name].logger.disabled = True

        def save_without_fsync() -> None:
            with mock.patch("os.fsync"):
                checkpointers["ours"].save("model_0000000", iteration=0)

        seconds = measure_in_turn(
            {
                "save: detectron2": lambda: checkpointers["detectron2"].save(
                    "model_0000000", iteration=0
                ),
                "save: ours, without fsync": save_without_fsync,
                "save: ours": lambda: checkpointers["ours"].save("model_0000000", iteration=0),
            }
        )
        file = Path(folder) / "ours" / "model_0000000.pth"

        def examine() -> None:
            os.utime(file)  # an examined file is not read again while its time is the same
            find_last_checkpoint(file.parent)

        seconds.update(
            measure_in_turn(
                {
                    "read: torch.load": lambda: torch.load(file, weights_only=True),
                    "read: with all checks": examine,
                }
            )
        )
        num_bytes = file.stat().st_size
    return {"bytes": num_bytes, "seconds": seconds}


def measure_iterations() -> dict[str, Any]:
    """Iterations without a save: with our data stream and stop checks, and in Detectron2's loop."""
    folder = tempfile.mkdtemp()
    config = get_config_file("digits/focal_retinanet_tiny.yaml")
    cfg = load_config(config, ["OUTPUT_DIR", folder, "MODEL.FOCAL_DET.TELEMETRY_PERIOD", 0])
    trainer = Trainer(cfg)
    trainer.max_iter = 10**6
    theirs = SimpleTrainer(trainer.model, build_detection_train_loader(cfg), trainer.optimizer)

    def run_ours() -> None:
        for _ in range(NUM_ITERS):
            trainer.iter += 1
            trainer._saver.before_step()
            trainer.run_step()
            trainer._saver.after_step()

    def run_theirs() -> None:
        for _ in range(NUM_ITERS):
            theirs.iter += 1
            theirs.run_step()

    trainer.iter = theirs.iter = 0
    with EventStorage() as trainer.storage:
        seconds = measure_in_turn(
            {"iterations: detectron2": run_theirs, "iterations: ours": run_ours}
        )
    shutil.rmtree(folder)
    return {"iterations": NUM_ITERS, "seconds": seconds}


def compute_ratio(seconds: Mapping[str, list[float]], new: str, old: str) -> float:
    return round(median(a / b for a, b in zip(seconds[new], seconds[old])), 3)


def main() -> None:
    saves, iterations = measure_saves(), measure_iterations()
    record = {
        **make_origin("python dev/measure_saves.py"),
        "checkpoint": saves,
        "loop": iterations,
        "median_ratios": {
            "save without fsync": compute_ratio(
                saves["seconds"], "save: ours, without fsync", "save: detectron2"
            ),
            "save": compute_ratio(saves["seconds"], "save: ours", "save: detectron2"),
            "read": compute_ratio(saves["seconds"], "read: with all checks", "read: torch.load"),
            "iterations": compute_ratio(
                iterations["seconds"], "iterations: ours", "iterations: detectron2"
            ),
        },
    }
    RECORD.parent.mkdir(parents=True, exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record["median_ratios"], indent=1))


if __name__ == "__main__":
    main()
