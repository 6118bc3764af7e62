"""Train every loss on digits and on long-tailed digits, and keep a record of each run: `python projects/Losses/run.py`.

All start from the backbone and FPN of one training with the focal loss on long-tailed digits, the first run here. Each run is
Detectron2's own `tools/train_net.py` in a process of its own. Runs that have a record are not repeated, so an interrupted
comparison goes on where it was.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from focal_det.experiments.records import make_record

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
OUTPUT = Path("output", "losses")  # in the folder of focal_det
LOSSES = [
    x for x in sorted((ROOT / "configs" / "losses").glob("*.yaml")) if x.stem != "Base-Losses"
]
REMEDIES = [HERE / "configs" / f"{name}.yaml" for name in ("repeat_factor", "per_class_alpha")]
CONFIGS = {"digits_train": LOSSES, "digits_longtail_train": [*LOSSES, *REMEDIES]}


@dataclass(frozen=True)
class Run:
    """One training, from new weights or from what all start from."""

    config: Path
    dataset: str
    seed: int
    is_new: bool = False

    @property
    def name(self) -> str:
        return f"{self.dataset}/{self.config.stem}_{self.seed}"

    @property
    def record(self) -> Path:
        return HERE / "records" / f"{self.name}.json"

    @property
    def output(self) -> Path:
        return ROOT / OUTPUT / self.name

    @property
    def command(self) -> list[str]:
        """What python is given in the folder of focal_det."""
        words = [
            "-m",
            "tools.train_net",
            "--config-file",
            str(self.config.relative_to(ROOT)),
            "SEED",
            str(self.seed),
        ]
        weights = "" if self.is_new else str(OUTPUT / "start.pth")
        words += ["MODEL.WEIGHTS", weights, "DATASETS.TRAIN", f"('{self.dataset}',)"]
        return [*words, "OUTPUT_DIR", str(self.output.relative_to(ROOT))]


START = Run(
    ROOT / "configs" / "digits" / "focal_retinanet_tiny.yaml",
    "digits_longtail_train",
    seed=1,
    is_new=True,
)


def train(run: Run) -> bool:
    """Train and write the record; a run that fails leaves its log and no record."""
    run.output.mkdir(parents=True, exist_ok=True)
    (run.output / "metrics.json").unlink(missing_ok=True)
    env = {**os.environ, "DETECTRON2_ENV_MODULE": "focal_det.env"}
    with open(run.output / "terminal.txt", "w") as terminal:
        done = subprocess.run(
            [sys.executable, *run.command],
            cwd=ROOT,
            env=env,
            stdout=terminal,
            stderr=subprocess.STDOUT,
        )
    if done.returncode:
        return False
    record = make_record(run.output, " ".join(["python", *run.command]), "digits_val")
    run.record.parent.mkdir(parents=True, exist_ok=True)
    run.record.write_text(
        json.dumps({**record, "trained_on": run.dataset, "seed": run.seed}, indent=1) + "\n"
    )
    return True


def make_start() -> None:
    """Train what all runs start from, unless it is there, and keep its backbone and FPN only."""
    weights = ROOT / OUTPUT / "start.pth"
    if weights.is_file():
        return
    print(f"training {weights}, what all runs start from: about 5 minutes", flush=True)
    if not train(START):
        raise RuntimeError(f"the training failed, see {START.output}/terminal.txt")
    model = torch.load(START.output / "model_final.pth", map_location="cpu", weights_only=True)[
        "model"
    ]
    torch.save({"model": {k: v for k, v in model.items() if k.startswith("backbone.")}}, weights)


def main() -> int:
    """Train what has no record yet; see `--help`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1, 2], metavar="N", help="(default: 1 2)"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        help="runs at a time, each with OMP_NUM_THREADS threads (default: 1)",
    )
    args = parser.parse_args()
    make_start()
    runs = [
        Run(config, dataset, seed)
        for seed in args.seeds
        for dataset in CONFIGS
        for config in CONFIGS[dataset]
    ]
    todo = [run for run in runs if not run.record.is_file()]
    print(
        f"{len(runs) - len(todo)} of {len(runs)} runs have a record; {len(todo)} to go", flush=True
    )
    start, failed = time.time(), 0
    with ThreadPoolExecutor(args.jobs) as pool:
        for index, (run, is_done) in enumerate(zip(todo, pool.map(train, todo)), start=1):
            left = (time.time() - start) / 60 / index * (len(todo) - index)
            outcome = "done" if is_done else f"FAILED, see {run.output}/terminal.txt"
            print(
                f"[{index}/{len(todo)}] {run.name}: {outcome}; about {left:.0f} minutes left",
                flush=True,
            )
            failed += not is_done
    return failed


if __name__ == "__main__":
    sys.exit(main())
