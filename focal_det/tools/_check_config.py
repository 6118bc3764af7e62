"""Checks of a config: its data sets against its classes, and numbers that do not go together."""

import math
from pathlib import Path
from typing import Any

import focal_det.host  # noqa: F401  (first: says how to get Detectron2)

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from focal_det.data.catalog import register_datasets
from focal_det.data.findings import Findings
from focal_det.registry import describe_unknown

_IMAGES_PER_LR = 16 / 0.01  # Detectron2's RetinaNet: 16 images at 0.01
_EVALUATORS = ("coco", "lvis", "pascal_voc")


def check_datasets_of_config(cfg: CfgNode, findings: Findings) -> list[str]:
    """Register the config's data sets; check that all it names are there, with its number of classes; return those that are."""
    register_datasets(cfg.MODEL.FOCAL_DET.DATASETS, source="MODEL.FOCAL_DET.DATASETS")
    names = []
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if name in DatasetCatalog.list():
                names.append(name)
                continue
            advice = "Register it: FOCAL_DET_DATASETS, MODEL.FOCAL_DET.DATASETS or code of yours."
            what = "data sets that nobody registered"
            findings.add("error", what, advice, f"DATASETS.{key}: {describe_unknown('data set', name, DatasetCatalog.list())}")
    for name in names:
        _check_classes(name, cfg.MODEL.RETINANET.NUM_CLASSES, findings)
    for name in cfg.DATASETS.TEST:
        kind = MetadataCatalog.get(name).get("evaluator_type", "") if name in names else _EVALUATORS[0]
        if kind not in _EVALUATORS:
            what = "test sets without an evaluator"
            findings.add("error", what, f"Set its evaluator_type to one of {', '.join(_EVALUATORS)}.", f"{name}: {kind!r}")
    return list(dict.fromkeys(names))


def _check_classes(name: str, num_classes: int, findings: Findings) -> None:
    """Compare the classes of a data set with NUM_CLASSES, where they are known without reading it, or after."""
    classes = MetadataCatalog.get(name).get("thing_classes")
    if classes is None:
        try:
            DatasetCatalog.get(name)
        except Exception:  # the check of the data says what is wrong with it
            return
        classes = MetadataCatalog.get(name).get("thing_classes")
    if classes and len(classes) != num_classes:
        advice = f"Set MODEL.RETINANET.NUM_CLASSES to {len(classes)}; background is not counted."
        place = f"{name} has {len(classes)} ({', '.join(classes[:10])}), MODEL.RETINANET.NUM_CLASSES is {num_classes}"
        findings.add("error", "data sets with another number of classes than the model", advice, place)


def check_config(cfg: CfgNode, findings: Findings) -> None:
    """Check values by themselves and against each other."""
    for key, value in _walk(cfg):
        if isinstance(value, float) and not math.isfinite(value):
            findings.add("error", "numbers that are not finite", "Give them a number.", f"{key}: {value}")
    solver = cfg.SOLVER
    beyond = [x for x in solver.STEPS if x >= solver.MAX_ITER]
    if beyond:
        what = "steps of the learning rate after the end of the training"
        findings.add("warning", what, "Set SOLVER.STEPS below SOLVER.MAX_ITER.", f"{beyond} with SOLVER.MAX_ITER {solver.MAX_ITER}")
    expected = solver.IMS_PER_BATCH / _IMAGES_PER_LR
    if cfg.MODEL.WEIGHTS and expected > 0 and not 0.25 <= solver.BASE_LR / expected <= 4:
        advice = f"By the linear rule (16 images at 0.01) it would be about {expected:.3g}; with more, warm up longer."
        findings.add(
            "warning",
            "learning rates far from what the batch asks for",
            advice,
            f"{solver.BASE_LR} for {solver.IMS_PER_BATCH} images",
        )
    weights = cfg.MODEL.WEIGHTS
    if weights and "://" not in weights and not Path(weights).is_file():
        findings.add("error", "weights that do not exist", "Correct MODEL.WEIGHTS.", weights)
    if cfg.MODEL.ROI_HEADS.NUM_CLASSES != 80 and cfg.MODEL.META_ARCHITECTURE.endswith("RetinaNet"):
        advice = "RetinaNet reads MODEL.RETINANET.NUM_CLASSES."
        findings.add(
            "warning", "keys of another architecture", advice, f"MODEL.ROI_HEADS.NUM_CLASSES {cfg.MODEL.ROI_HEADS.NUM_CLASSES}"
        )


def _walk(cfg: CfgNode, prefix: str = "") -> list[tuple[str, Any]]:
    pairs = []
    for key, value in cfg.items():
        pairs += _walk(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [(prefix + key, value)]
    return pairs
