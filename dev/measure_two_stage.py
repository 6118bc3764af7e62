"""Figures for projects/TwoStage that no training run records, written to its results folder:

    python dev/measure_two_stage.py steps digits
    python dev/measure_two_stage.py recall digits

"steps" measures seconds and memory of a training step of each config of a table, in turn in one
process. All rows train for the same time, so their iterations follow from these figures. "recall"
measures the recall of the proposals of each run in output/sweep/TwoStage.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import inference_on_dataset
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from tqdm import tqdm

from focal_det.checkpoint.checkpointer import HealthyCheckpointer
from focal_det.data.evaluation import build_evaluator
from focal_det.engine.trainer import Trainer
from focal_det.env import load_config
from focal_det.experiments.records import make_origin
from focal_det.experiments.timing import time_alternating
from focal_det.files import write_json

PROJECT = Path(__file__).parent.parent / "projects" / "TwoStage"
RUNS = Path("output/sweep/TwoStage/runs")
ROUNDS = 15
# Of an image, for both recalls; the detectors themselves take 300.
MAX_PROPOSALS = 1000


def measure_steps(table: str) -> dict[str, Any]:
    """Median seconds and peak bytes of the tensors of a training step, for each row of a table."""
    trainers = {}
    with tempfile.TemporaryDirectory() as folder, EventStorage() as storage:
        for config in sorted((PROJECT / "configs" / table).glob("*.yaml")):
            trainer = Trainer(load_config(config, ["OUTPUT_DIR", folder]))
            trainer.storage = storage
            trainers[config.stem] = trainer
        steps = {name: trainer.run_step for name, trainer in trainers.items()}
        timings = time_alternating(steps, rounds=ROUNDS, desc="steps")
    rows = {}
    for name, timing in timings.items():
        if timing.error:
            raise RuntimeError(f"{name}: {timing.error}")
        rows[name] = {"seconds": timing.median, "peak_bytes": timing.peak_bytes}
    return {"rounds": ROUNDS, "rows": rows}


def measure_recall(table: str) -> dict[str, Any]:
    """Recall of 100 and of 1000 proposals of each run of a two-stage detector."""
    runs = {}
    files = sorted(RUNS.glob(f"{table}-*/model_final.pth"))
    # One folder for all: the evaluator keeps a JSON of VOC data there, and names it to the others.
    with tempfile.TemporaryDirectory() as folder:
        for file in tqdm(files, unit="run"):
            cfg = load_config(file.parent / "config.yaml")
            if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN":
                runs[file.parent.name] = evaluate_proposals(cfg, file, folder)
    return {"max_proposals": MAX_PROPOSALS, "runs": runs}


def evaluate_proposals(cfg: CfgNode, weights: Path, folder: str) -> dict[str, float]:
    """Average recall in percent over IoU 0.5 to 0.95 of a run's proposals, on its test set.

    Args:
        folder: for the files of the evaluator.
    """
    cfg = cfg.clone()
    # Detectron2's architecture that has only the backbone and the RPN of a two-stage detector.
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    cfg.MODEL.RPN.PRE_NMS_TOPK_TEST = MAX_PROPOSALS
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = MAX_PROPOSALS
    model = build_model(cfg)
    HealthyCheckpointer(model).load(str(weights))
    dataset = cfg.DATASETS.TEST[-1]
    evaluator = build_evaluator(dataset, folder)
    process = evaluator.process
    # In lists, as pycocotools takes the letters of an id that is text for ids.
    evaluator.process = lambda inputs, outputs: process(
        [{**x, "image_id": [x["image_id"]]} for x in inputs], outputs
    )
    results = inference_on_dataset(model, build_detection_test_loader(cfg, dataset), evaluator)
    return {name: results["box_proposals"][name] for name in ("AR@100", "AR@1000")}


MEASURES = {"steps": measure_steps, "recall": measure_recall}


def main(what: str, table: str) -> None:
    origin = make_origin(f"python dev/measure_two_stage.py {what} {table}")
    content = {**origin, **MEASURES[what](table)}
    file = PROJECT / "results" / f"{table}_{what}.json"
    file.parent.mkdir(exist_ok=True)
    write_json(file, content)
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
