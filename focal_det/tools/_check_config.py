"""Checks of a config: its data sets against its classes, and numbers that do not go together."""

import math
from pathlib import Path

import focal_det.host  # noqa: F401  (first: says how to get Detectron2)

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from focal_det.config import flatten_config
from focal_det.data.findings import Findings
from focal_det.registry import describe_unknown

_IMAGES_PER_LR = 16 / 0.01  # Detectron2's RetinaNet: 16 images at 0.01
_EVALUATORS = ("coco", "lvis", "pascal_voc")


def check_config(cfg: CfgNode, findings: Findings) -> None:
    """Check that the data sets are there, and values by themselves and against each other."""
    _check_names(cfg, findings)
    _check_numbers(cfg, findings)
    weights = cfg.MODEL.WEIGHTS
    if weights and "://" not in weights and not Path(weights).is_file():
        findings.add("error", "weights that do not exist", "Correct MODEL.WEIGHTS.", weights)
    classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    if classes != 80 and cfg.MODEL.META_ARCHITECTURE.endswith("RetinaNet"):
        advice = "RetinaNet reads MODEL.RETINANET.NUM_CLASSES."
        findings.add("warning", "keys of another architecture", advice, f"MODEL.ROI_HEADS.NUM_CLASSES {classes}")


def _check_names(cfg: CfgNode, findings: Findings) -> None:
    known = DatasetCatalog.list()
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name not in known:
                advice = "Register it: FOCAL_DET_DATASETS, MODEL.FOCAL_DET.DATASETS or code of yours."
                place = f"DATASETS.{key}: {describe_unknown('data set', name, known)}"
                findings.add("error", "data sets that nobody registered", advice, place)
            elif key == "TEST" and MetadataCatalog.get(name).get("evaluator_type") not in _EVALUATORS:
                advice = f"Set its evaluator_type to one of {', '.join(_EVALUATORS)}."
                findings.add("error", "test sets without an evaluator", advice, name)


def _check_numbers(cfg: CfgNode, findings: Findings) -> None:
    for key, value in flatten_config(cfg).items():
        if isinstance(value, float) and not math.isfinite(value):
            findings.add("error", "numbers that are not finite", "Give them a number.", f"{key}: {value}")
    solver = cfg.SOLVER
    beyond = [x for x in solver.STEPS if x >= solver.MAX_ITER]
    if beyond:
        what, place = "steps of the learning rate after the end of the training", f"{beyond} with SOLVER.MAX_ITER {solver.MAX_ITER}"
        findings.add("warning", what, "Set SOLVER.STEPS below SOLVER.MAX_ITER.", place)
    expected = solver.IMS_PER_BATCH / _IMAGES_PER_LR
    if cfg.MODEL.WEIGHTS and not 0.25 <= solver.BASE_LR / expected <= 4:
        advice = f"By the linear rule (16 images at 0.01) it would be about {expected:.3g}; with more, warm up longer."
        place = f"{solver.BASE_LR} for {solver.IMS_PER_BATCH} images"
        findings.add("warning", "learning rates far from what the batch asks for", advice, place)
