"""What it costs to be watched: guard and telemetry in a training step on digits, and `focal-det check` on 100,000 images.

python dev/measure_watch.py
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path
from statistics import median

import cv2
import numpy as np
import torch
from detectron2.utils.events import EventStorage

from focal_det.engine.trainer import Trainer
from focal_det.env import load_config
from focal_det.experiments.records import get_commit, get_version
from focal_det.model_zoo import get_config_file

RECORD = Path(__file__).parent.parent / "benchmarks" / "watch" / "cpu.json"
NUM_IMAGES, BOXES_PER_IMAGE, NUM_CLASSES = 100_000, 7, 80


def measure_steps(rounds: int = 15, iterations: int = 40) -> dict:
    """Seconds per iteration of each way in each round, in turn, in one process and on one model."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = load_config(
            get_config_file("digits/focal_retinanet_tiny.yaml"), ["OUTPUT_DIR", folder]
        )
        trainer = Trainer(cfg)
        guard = trainer._guard
        seconds: dict[str, list[float]] = {"plain": [], "guard": [], "guard and telemetry": []}
        with EventStorage() as trainer.storage:
            trainer.max_iter = 10**6
            for index in range(rounds + 1):  # the first warms up
                for way in np.roll(
                    list(seconds), index
                ).tolist():  # each is first, second and last in turn
                    times = seconds[way]
                    trainer.model.telemetry_period = 20 if "telemetry" in way else 0
                    if "guard" in way:
                        guard.before_train()
                    start = time.perf_counter()
                    for _ in range(iterations):
                        trainer.storage.iter = trainer.iter
                        trainer.run_step()
                        trainer.iter += 1
                    times.append((time.perf_counter() - start) / iterations)
                    if "guard" in way:
                        guard.after_train()
                    print(f"{way}: {times[-1]:.4f} s/it", flush=True)
    seconds = {k: v[1:] for k, v in seconds.items()}
    pairs = {
        "guard": ("guard", "plain"),
        "telemetry": ("guard and telemetry", "guard"),
        "both": ("guard and telemetry", "plain"),
    }
    ratios = {
        k: median(x / y for x, y in zip(seconds[on], seconds[off]))
        for k, (on, off) in pairs.items()
    }
    return {
        "seconds_per_iteration": seconds,
        "median_ratios": ratios,
        "rounds": rounds,
        "iterations": iterations,
    }


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
        for k in range(num_images * BOXES_PER_IMAGE):
            x, y, width, height = (
                rng.randint(0, 500),
                rng.randint(0, 380),
                rng.randint(4, 130),
                rng.randint(4, 90),
            )
            ids = f'"id": {k + 1}, "image_id": {k // BOXES_PER_IMAGE + 1}, "category_id": {rng.randint(1, NUM_CLASSES)}'
            box = f'"bbox": [{x}, {y}, {width}, {height}], "area": {width * height}, "iscrowd": 0'
            out.write(f"{', ' if k else ''}{{{ids}, {box}}}")
        out.write("]}")


def measure_check(num_images: int = NUM_IMAGES) -> dict:
    """Seconds and peak memory of a whole check but for the decoding of the images: all are links to one, and one is decoded."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_large_coco(folder / "large.json", num_images)
        cv2.imwrite(str(folder / "0.jpg"), np.zeros((480, 640, 3), np.uint8))
        for i in range(1, num_images):
            (folder / f"{i}.jpg").symlink_to(folder / "0.jpg")
        block = {
            "name": "large",
            "format": "coco",
            "json": str(folder / "large.json"),
            "images": name,
        }
        words = ["MODEL.WEIGHTS", "", "DATASETS.TRAIN", "('large',)", "DATASETS.TEST", "('large',)"]
        config = get_config_file("COCO-Detection/focal_retinanet_R_50_FPN_1x.yaml")
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "focal_det.tools",
            "check",
            "--config-file",
            config,
            "--images",
            "1",
        ]
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, *words, "MODEL.FOCAL_DET.DATASETS", str([block])], stderr=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    exit_code = os.waitstatus_to_exitcode(status)
    figures = {
        "images": num_images,
        "annotations": num_images * BOXES_PER_IMAGE,
        "exit_code": exit_code,
    }
    return {
        **figures,
        "seconds": round(seconds, 1),
        "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2),
    }


def main() -> int:
    device = f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"
    versions = {x: get_version(x) for x in ("torch", "detectron2", "focal-det")}
    content = {
        "command": "python dev/measure_watch.py",
        "device": device,
        "commit": get_commit(),
        "versions": versions,
        "date": date.today().isoformat(),
    }
    content = {**content, "step": measure_steps(), "check": measure_check()}
    RECORD.write_text(json.dumps(content, indent=1) + "\n")
    print(
        json.dumps(
            {"ratios": content["step"]["median_ratios"], "check": content["check"]}, indent=1
        )
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
