"""The cost of guard and telemetry in a training step, and of `focal-det check` on 100,000 images.

python dev/measure_watch.py
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np
from detectron2.utils.events import EventStorage

from focal_det.engine.trainer import Trainer
from focal_det.env import load_config
from focal_det.experiments.records import make_origin
from focal_det.model_zoo import get_config_file

RECORD = Path(__file__).parent.parent / "benchmarks" / "watch" / "cpu.json"
NUM_IMAGES = 100_000
BOXES_PER_IMAGE = 7
NUM_CLASSES = 80
MODES = ("plain", "guard", "guard and telemetry")
RATIOS = {
    "guard": ("guard", "plain"),
    "telemetry": ("guard and telemetry", "guard"),
    "both": ("guard and telemetry", "plain"),
}


def measure_steps(rounds: int = 15, iterations: int = 40) -> dict[str, Any]:
    """Seconds per iteration of each mode in each round, in turn, in one process on one model."""
    seconds: dict[str, list[float]] = {mode: [] for mode in MODES}
    with tempfile.TemporaryDirectory() as folder:
        config = get_config_file("digits/focal_retinanet_tiny.yaml")
        trainer = Trainer(load_config(config, ["OUTPUT_DIR", folder]))
        with EventStorage() as trainer.storage:
            trainer.max_iter = 10**6
            for index in range(rounds + 1):
                # Each mode is first, second and last in turn, as a machine's speed drifts.
                for mode in np.roll(MODES, index).tolist():
                    seconds[mode].append(measure_mode(trainer, mode, iterations))
                    print(f"{mode}: {seconds[mode][-1]:.4f} s/it", flush=True)
    # The first round was the warm-up.
    seconds = {mode: times[1:] for mode, times in seconds.items()}
    return {
        "seconds_per_iteration": seconds,
        "median_ratios": {k: compute_ratio(seconds, *modes) for k, modes in RATIOS.items()},
        "rounds": rounds,
        "iterations": iterations,
    }


def measure_mode(trainer: Trainer, mode: str, iterations: int) -> float:
    """Seconds per iteration with a mode's hooks."""
    # One model for all modes, so that nothing else differs.
    trainer.model.telemetry_period = 20 if "telemetry" in mode else 0
    if "guard" in mode:
        trainer._guard.before_train()
    start = time.perf_counter()
    for _ in range(iterations):
        trainer.storage.iter = trainer.iter
        trainer.run_step()
        trainer.iter += 1
    seconds = (time.perf_counter() - start) / iterations
    if "guard" in mode:
        trainer._guard.after_train()
    return seconds


def compute_ratio(seconds: Mapping[str, Sequence[float]], mode: str, reference: str) -> float:
    """Median over the rounds of the quotient within each round."""
    return median(x / y for x, y in zip(seconds[mode], seconds[reference]))


def write_large_coco(file: Path, num_images: int) -> None:
    """A correct COCO json of many images, written line by line."""
    rng = random.Random(0)
    with file.open("w") as out:
        images = (
            f'{{"id": {i + 1}, "file_name": "{i}.jpg", "width": 640, "height": 480}}'
            for i in range(num_images)
        )
        out.write('{"images": [' + ", ".join(images))
        names = ", ".join(f'{{"id": {i + 1}, "name": "c{i}"}}' for i in range(NUM_CLASSES))
        out.write(f'], "categories": [{names}], "annotations": [')
        # One by one: this process would otherwise hold them all at once.
        for index in range(num_images * BOXES_PER_IMAGE):
            out.write(", " if index else "")
            out.write(json.dumps(make_annotation(index, rng)))
        out.write("]}")


def make_annotation(index: int, rng: random.Random) -> dict[str, Any]:
    """A box that lies in its image of 640 x 480 pixels."""
    x = rng.randint(0, 500)
    y = rng.randint(0, 380)
    width = rng.randint(4, 130)
    height = rng.randint(4, 90)
    return {
        "id": index + 1,
        "image_id": index // BOXES_PER_IMAGE + 1,
        "category_id": rng.randint(1, NUM_CLASSES),
        "bbox": [x, y, width, height],
        "area": width * height,
        "iscrowd": 0,
    }


def measure_check(num_images: int = NUM_IMAGES) -> dict[str, Any]:
    """Seconds and peak memory of a whole check, but for decoding the images.

    All images are links to one file, and one is decoded.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = write_check(Path(folder), num_images)
        start = time.perf_counter()
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        # Unlike `Popen.wait`, this says how much memory the process has used.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    return {
        "images": num_images,
        "annotations": num_images * BOXES_PER_IMAGE,
        "exit_code": os.waitstatus_to_exitcode(status),
        "seconds": round(seconds, 1),
        "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2),
    }


def write_check(folder: Path, num_images: int) -> list[str]:
    """Write a data set to a folder and return the command that checks it."""
    write_large_coco(folder / "large.json", num_images)
    cv2.imwrite(str(folder / "0.jpg"), np.zeros((480, 640, 3), np.uint8))
    for i in range(1, num_images):
        # The check asks whether each file exists, and opens one.
        (folder / f"{i}.jpg").symlink_to(folder / "0.jpg")
    file = str(folder / "large.json")
    block = {"name": "large", "format": "coco", "json": file, "images": str(folder)}
    config = get_config_file("COCO-Detection/focal_retinanet_R_50_FPN_1x.yaml")
    words = ["check", "--config-file", config, "--images", "1", "MODEL.WEIGHTS", ""]
    words += ["DATASETS.TRAIN", "('large',)", "DATASETS.TEST", "('large',)"]
    words += ["MODEL.FOCAL_DET.DATASETS", str([block])]
    return [sys.executable, "-W", "ignore", "-m", "focal_det.tools", *words]


def main() -> int:
    content = make_origin("python dev/measure_watch.py")
    content["step"] = measure_steps()
    content["check"] = measure_check()
    RECORD.write_text(json.dumps(content, indent=1) + "\n")
    shown = {"ratios": content["step"]["median_ratios"], "check": content["check"]}
    print(json.dumps(shown, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
