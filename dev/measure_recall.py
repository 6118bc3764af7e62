"""Recall of the proposals of each run in output/sweep/TwoStage:

    python dev/measure_recall.py digits

It is written to the results of projects/TwoStage.
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
from tqdm import tqdm

from focal_det.checkpoint.checkpointer import HealthyCheckpointer
from focal_det.data.evaluation import build_evaluator
from focal_det.env import load_config
from focal_det.experiments.records import make_origin
from focal_det.files import write_json

PROJECT = Path(__file__).parent.parent / "projects" / "TwoStage"
RUNS = Path("output/sweep/TwoStage/runs")
# Of an image, for both recalls; the detectors themselves take 300.
MAX_PROPOSALS = 1000


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


def main(table: str) -> None:
    origin = make_origin(f"python dev/measure_recall.py {table}")
    content = {**origin, **measure_recall(table)}
    file = PROJECT / "results" / f"{table}_recall.json"
    file.parent.mkdir(exist_ok=True)
    write_json(file, content)
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
