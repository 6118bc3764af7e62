"""Checks of a config: its data sets against its classes, numbers that do not go together, and weights that do not fit."""

import math
from pathlib import Path
from typing import Any

import focal_det.host  # noqa: F401  (first: says how to get Detectron2)

from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import build_model

from focal_det.config import flatten_config
from focal_det.data.findings import Findings, shorten
from focal_det.engine.checkpointer import HealthyCheckpointer
from focal_det.registry import describe_unknown
from focal_det.tools._check_data import silence
from focal_det.tools._training_set import GetRecords

_IMAGES_PER_LR = 16 / 0.01  # Detectron2's RetinaNet: 16 images at 0.01
_EVALUATORS = ("coco", "lvis", "pascal_voc")
_FEW_WEIGHTS = 0.5  # of the model's tensors, below which it is a warning


def check_config(cfg: CfgNode, findings: Findings) -> None:
    """Check that the data sets are there, and values by themselves and against each other."""
    _check_names(cfg, findings)
    values = flatten_config(cfg)
    for key, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            findings.add("error", "numbers that are not finite", "Give them a number.", f"{key}: {value}")
    _check_solver(cfg.SOLVER, bool(cfg.MODEL.WEIGHTS), findings)
    if cfg.MODEL.META_ARCHITECTURE.endswith("RetinaNet"):
        _check_other_architectures(values, findings)


def _check_other_architectures(values: dict[str, Any], findings: Findings) -> None:
    defaults = flatten_config(get_cfg())
    others = ("MODEL.ROI_", "MODEL.RPN.", "MODEL.PROPOSAL_GENERATOR.")
    changed = [f"{k} {v}" for k, v in values.items() if k.startswith(others) and v != defaults.get(k)]
    if changed:
        advice = "RetinaNet reads MODEL.RETINANET, such as MODEL.RETINANET.NUM_CLASSES and SCORE_THRESH_TEST."
        findings.add("warning", "keys of another architecture", advice, shorten(changed))


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
    if not cfg.DATASETS.TRAIN:
        findings.add("error", "configs without a training set", "Name one.", "DATASETS.TRAIN is empty")


def check_classes(cfg: CfgNode, get_records: GetRecords, findings: Findings) -> None:
    """Compare the classes of the data sets with each other."""
    first, *others = dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    for name in (first, *others):
        get_records(name)  # some have their classes from then on
    classes = MetadataCatalog.get(first).get("thing_classes")
    for name in others:
        theirs = MetadataCatalog.get(name).get("thing_classes")
        if classes and theirs and list(classes) != list(theirs):
            index = next((i for i, pair in enumerate(zip(classes, theirs)) if pair[0] != pair[1]), min(len(classes), len(theirs)))
            values = [x[index] if index < len(x) else "none" for x in (classes, theirs)]
            place = f"class {index} is {values[0]!r} in {first}, {values[1]!r} in {name}"
            advice = "Detections would count for other classes: use the same categories, in the same order of ids."
            findings.add("error", "data sets with other classes than the training set", advice, place)


def _check_solver(solver: CfgNode, has_weights: bool, findings: Findings) -> None:
    beyond = [x for x in solver.STEPS if x >= solver.MAX_ITER]
    if beyond:
        what, place = "steps of the learning rate after the end of the training", f"{beyond} with SOLVER.MAX_ITER {solver.MAX_ITER}"
        findings.add("warning", what, "Set SOLVER.STEPS below SOLVER.MAX_ITER.", place)
    if solver.WARMUP_ITERS >= solver.MAX_ITER:
        place = f"SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS}, SOLVER.MAX_ITER {solver.MAX_ITER}"
        findings.add("warning", "warm-ups longer than the training", "The learning rate is never reached: shorten it.", place)
    expected = solver.IMS_PER_BATCH / _IMAGES_PER_LR
    if not has_weights:
        return
    if not 0.25 <= solver.BASE_LR / expected <= 4:
        advice = f"By the linear rule (16 images at 0.01) it would be about {expected:.3g}; with more, warm up longer."
        place = f"{solver.BASE_LR} for {solver.IMS_PER_BATCH} images"
        findings.add("warning", "learning rates far from what the batch asks for", advice, place)
    elif expected < solver.BASE_LR and solver.WARMUP_ITERS < 100:
        place = f"SOLVER.BASE_LR {solver.BASE_LR}, SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS}"
        findings.add("warning", "short warm-ups for a high learning rate", "Set SOLVER.WARMUP_ITERS to 500 or more.", place)


def check_weights(cfg: CfgNode, findings: Findings) -> None:
    """Load MODEL.WEIGHTS into the model, and count what fits; weights at a URL are looked at when training loads them."""
    file = cfg.MODEL.WEIGHTS
    if not file or "://" in file:
        return
    if not Path(file).is_file():
        findings.add("error", "weights that do not exist", "Correct MODEL.WEIGHTS.", file)
        return
    try:
        with silence():
            checkpointer = HealthyCheckpointer(build_model(cfg))
            checkpointer.load(file, checkpointables=[])
    except Exception as error:  # whatever it is, it would stop the training
        advice = "Correct MODEL.WEIGHTS."
        findings.add("error", "weights that cannot be loaded", advice, f"{file}: {type(error).__name__}: {error}")
        return
    matched, total = checkpointer.num_matched, checkpointer.num_tensors
    if matched < _FEW_WEIGHTS * total:
        place = f"{file}: {matched} of {total} tensors; the rest starts at random"
        findings.add("warning", "weights that fit a small part of the model", "Is it the right file?", place)
    elif matched < total:
        place = f"{file}: {matched} of {total} tensors"
        findings.add("note", "weights that leave a part of the model as it starts", "", place)
