"""Negative anchors per positive of each rung of projects/Imbalance:

    python dev/measure_rungs.py

They are written to the results of the project.
"""

import json
from pathlib import Path

from detectron2.data import DatasetCatalog

from focal_det.env import load_config
from focal_det.experiments.records import make_origin
from focal_det.files import write_json
from focal_det.imbalance.measure import measure_training_set

PROJECT = Path(__file__).parent.parent / "projects" / "Imbalance"
RUNGS = ("60", "500", "4000")
NUM_IMAGES = 200  # as many as `focal-det check` measures


def main() -> None:
    rungs = {}
    for name in RUNGS:
        cfg = load_config(PROJECT / "configs" / f"{name}.yaml")
        report = measure_training_set(cfg, DatasetCatalog.get, num_images=NUM_IMAGES, suggest=False)
        balance = report.stages[0].balance
        rungs[name] = {
            "negatives_per_positive": balance.negatives_per_positive,
            "positives_per_image": float(report.fit.positives_per_image.mean()),
            "anchors_per_image": report.fit.num_anchors / len(report.sample),
        }
    content = {**make_origin("python dev/measure_rungs.py"), "images": NUM_IMAGES, "rungs": rungs}
    write_json(PROJECT / "results" / "rungs.json", content)
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
