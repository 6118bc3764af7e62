"""How unbalanced the data of comparisons are: each rung of projects/Imbalance, and other digits:

    python dev/measure_rungs.py

They are written to the results of the project.
"""

import json
from pathlib import Path
from typing import Any

from detectron2.data import DatasetCatalog
from render_imbalance import PROJECT, RUNGS

from focal_det.env import load_config
from focal_det.experiments.records import make_origin
from focal_det.files import write_json
from focal_det.imbalance.measure import measure_training_set

# By the record that they are the data of.
OTHERS = {
    "TwoStage/digits": "TwoStage/configs/digits/retinanet_focal.yaml",
    "Losses/digits_longtail_train": "Losses/configs/repeat_factor.yaml",
}
NUM_IMAGES = 200  # as many as `focal-det check` measures


def measure(config_file: Path) -> dict[str, Any]:
    cfg = load_config(config_file)
    report = measure_training_set(cfg, DatasetCatalog.get, num_images=NUM_IMAGES, suggest=False)
    balance = report.stages[0].balance
    return {
        "negatives_per_positive": balance.negatives_per_positive,
        "positives_per_image": float(report.fit.positives_per_image.mean()),
        "anchors_per_image": report.fit.num_anchors / len(report.sample),
        "classes": len(report.class_names),
        "most_per_least_frequent": float(report.weights.counts.max() / report.weights.counts.min()),
    }


def main() -> None:
    content = {
        **make_origin("python dev/measure_rungs.py"),
        "images": NUM_IMAGES,
        "rungs": {name: measure(PROJECT / "configs" / f"{name}.yaml") for name in RUNGS},
        "others": {name: measure(PROJECT.parent / config) for name, config in OTHERS.items()},
    }
    write_json(PROJECT / "results" / "rungs.json", content)
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
