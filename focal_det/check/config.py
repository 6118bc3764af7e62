"""Checks of a config: its data sets against its classes, numbers that do not go together, and weights that do not fit."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Optional

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY, build_model
from torch import nn

from focal_det.checkpoint.checkpointer import HealthyCheckpointer
from focal_det.checkpoint.weights_file import WeightsError
from focal_det.data.catalog import describe_unregistered
from focal_det.messages import describe_unknown, shorten
from focal_det.modeling.build import find_not_finite, flatten_config, read_settings

from .datasets import silence
from .findings import Findings

_IMAGES_PER_LR = 16 / 0.01  # Detectron2's RetinaNet: 16 images at 0.01
_NARROW, _WIDE = (
    4,
    40,
)  # times that; far higher ones work with normalization, far lower ones for fine-tuning
_MAX_NAMED = 3  # classes of each data set
_EVALUATORS = ("coco", "lvis", "pascal_voc")
_FEW_WEIGHTS = 0.25  # of the model's tensors, below which it is a warning; a small ResNet is a third of a RetinaNet's


def check_config(
    cfg: CfgNode, findings: Findings, *, is_training: bool, dataset: Optional[str] = None
) -> None:
    """Check that the data sets are there, and values by themselves and against each other.

    Args:
        dataset: check only that this data set is there, instead of all.
        is_training: whether this machine is about to train it.
    """
    _check_names(cfg, findings, dataset)
    for key, value in find_not_finite(cfg).items():
        findings.add(
            "error", "numbers that are not finite", "Give them a number.", f"{key}: {value}"
        )
    _check_solver(cfg, findings)
    if read_settings(cfg).is_dense:
        _check_other_architectures(cfg, findings)
    if any(cfg.MODEL.PIXEL_MEAN) and max(cfg.MODEL.PIXEL_MEAN) <= 1:
        advice = "Detectron2's images are from 0 to 255, in the order of INPUT.FORMAT: multiply mean and deviation by 255."
        findings.add(
            "warning",
            "a pixel mean as of images from 0 to 1",
            advice,
            f"MODEL.PIXEL_MEAN {list(cfg.MODEL.PIXEL_MEAN)}",
        )
    _check_machine(cfg, findings, is_training)


def _check_machine(cfg: CfgNode, findings: Findings, is_training: bool) -> None:
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        severity = "error" if is_training else "note"
        advice = "Training here would stop: set MODEL.DEVICE cpu, or train where there is one."
        findings.add(severity, "no GPU on this machine", advice, f"MODEL.DEVICE {cfg.MODEL.DEVICE}")
    if is_training:
        try:
            Path(cfg.OUTPUT_DIR).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            findings.add(
                "error",
                "folders that cannot be made",
                "Choose another OUTPUT_DIR.",
                f"OUTPUT_DIR: {error}",
            )


def _check_other_architectures(cfg: CfgNode, findings: Findings) -> None:
    settings = read_settings(cfg)
    values = flatten_config(cfg)
    defaults = flatten_config(get_cfg())
    others = ("MODEL.ROI_", "MODEL.RPN.", "MODEL.PROPOSAL_GENERATOR.")
    changed = [
        f"{k} {v}" for k, v in values.items() if k.startswith(others) and v != defaults.get(k)
    ]
    if changed:
        advice = f"RetinaNet reads {settings.node_key}, such as {settings.num_classes_key}."
        findings.add("warning", "keys of another architecture", advice, shorten(changed))


def _check_names(cfg: CfgNode, findings: Findings, dataset: Optional[str]) -> None:
    known, architecture = DatasetCatalog.list(), cfg.MODEL.META_ARCHITECTURE
    if architecture not in META_ARCH_REGISTRY:
        place = describe_unknown("MODEL.META_ARCHITECTURE", architecture, dict(META_ARCH_REGISTRY))
        findings.add(
            "error", "architectures that nobody registered", "Import the code that has it.", place
        )
    for key in ("TRAIN", "TEST"):
        for name in cfg.DATASETS[key]:
            if dataset and name != dataset:
                continue
            if name not in known:
                file = os.environ.get("FOCAL_DET_DATASETS", "not set")
                advice = f"Register it: in FOCAL_DET_DATASETS ({file}), MODEL.FOCAL_DET.DATASETS or code of yours."
                place = f"DATASETS.{key}: {describe_unregistered(name)}"
                findings.add("error", "data sets that nobody registered", advice, place)
            elif (
                key == "TEST" and MetadataCatalog.get(name).get("evaluator_type") not in _EVALUATORS
            ):
                advice = f"Set its evaluator_type to one of {', '.join(_EVALUATORS)}."
                findings.add("error", "test sets without an evaluator", advice, name)
    if not cfg.DATASETS.TRAIN:
        findings.add(
            "error", "configs without a training set", "Name one.", "DATASETS.TRAIN is empty"
        )


def check_classes(
    cfg: CfgNode, classes_of: Mapping[str, Sequence[str]], findings: Findings
) -> None:
    """Compare the classes of the data sets with each other, and if they agree, their number with the model's.

    Args:
        classes_of: names of the classes in the order of their ids, by data set; empty if they are not known.
    """
    known = {name: list(classes) for name, classes in classes_of.items() if classes}
    if not known:
        return
    first, *others = known
    different = [name for name in others if known[name] != known[first]]
    for name in different:
        place = _describe_difference(first, known[first], name, known[name])
        advice = "Detections would count for other classes: use the same categories, in the same order of ids."
        findings.add("error", "data sets with other classes than the training set", advice, place)
    num_classes, key, classes = (
        read_settings(cfg).num_classes,
        read_settings(cfg).num_classes_key,
        known[first],
    )
    if not different and key and len(classes) != num_classes:
        place = f"{', '.join(known)}: {len(classes)} classes ({shorten(classes)}), {key} is {num_classes}"
        advice = f"Set {key} to {len(classes)}; background is not counted."
        findings.add(
            "error", "data sets with another number of classes than the model", advice, place
        )


def _describe_difference(
    first: str, classes: Sequence[str], name: str, others: Sequence[str]
) -> str:
    """The first class that is another, and names that only one of two data sets has, with the nearest of the other."""
    index = next(
        (i for i, pair in enumerate(zip(classes, others)) if pair[0] != pair[1]),
        min(len(classes), len(others)),
    )
    values = [repr(x[index]) if index < len(x) else "none" for x in (classes, others)]
    parts = [f"class {index} is {values[0]} in {first}, {values[1]} in {name}"]
    for owner, own, foreign in ((first, classes, others), (name, others, classes)):
        parts += [describe_unknown(f"class of {owner}", x, own) for x in foreign if x not in own][
            :_MAX_NAMED
        ]
    return ". ".join(x.rstrip(".") for x in parts)


def _check_solver(cfg: CfgNode, findings: Findings) -> None:
    solver, has_weights = cfg.SOLVER, bool(cfg.MODEL.WEIGHTS)
    for key in ("BASE_LR", "IMS_PER_BATCH", "MAX_ITER"):
        if solver[key] <= 0:
            findings.add(
                "error",
                "numbers that must be above 0",
                "Correct them.",
                f"SOLVER.{key} {solver[key]}",
            )
            return
    beyond = [x for x in solver.STEPS if x >= solver.MAX_ITER]
    if beyond and solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        what, place = (
            "steps of the learning rate after the end of the training",
            f"{beyond} with SOLVER.MAX_ITER {solver.MAX_ITER}",
        )
        findings.add("warning", what, "Set SOLVER.STEPS below SOLVER.MAX_ITER.", place)
    if solver.WARMUP_ITERS >= solver.MAX_ITER:
        place = f"SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS}, SOLVER.MAX_ITER {solver.MAX_ITER}"
        findings.add(
            "warning",
            "warm-ups longer than the training",
            "The learning rate is never reached: shorten it.",
            place,
        )
    expected, is_normalized = (
        solver.IMS_PER_BATCH / _IMAGES_PER_LR,
        bool(cfg.MODEL.FPN.NORM or read_settings(cfg).node.get("NORM")),
    )
    most = _WIDE if is_normalized or not has_weights else _NARROW
    if not 1 / _WIDE <= solver.BASE_LR / expected <= most:
        advice = f"By the linear rule (16 images at 0.01) it would be about {expected:.3g}; with more, warm up longer."
        place = f"{solver.BASE_LR} for {solver.IMS_PER_BATCH} images"
        findings.add("warning", "learning rates far from what the batch asks for", advice, place)
    elif has_weights and expected < solver.BASE_LR and solver.WARMUP_ITERS < 100:
        place = f"SOLVER.BASE_LR {solver.BASE_LR}, SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS}"
        findings.add(
            "warning",
            "short warm-ups for a high learning rate",
            "Set SOLVER.WARMUP_ITERS to 500 or more.",
            place,
        )


def check_model(cfg: CfgNode, findings: Findings) -> None:
    """Build the model, load MODEL.WEIGHTS and count what fits; weights at a URL are looked at when training loads them."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "cpu"  # nothing is computed
    try:
        with silence():
            model = build_model(cfg)
    except Exception as error:  # whatever it is, it would stop the training
        message = error.args[0] if len(error.args) == 1 else error
        findings.add(
            "error",
            "models that cannot be built",
            "Correct the config.",
            f"{type(error).__name__}: {message}",
        )
        return
    if cfg.MODEL.WEIGHTS and "://" not in cfg.MODEL.WEIGHTS:
        _check_weights(cfg.MODEL.WEIGHTS, model, findings)


def _check_weights(file: str, model: nn.Module, findings: Findings) -> None:
    if not Path(file).is_file():
        findings.add("error", "weights that do not exist", "Correct MODEL.WEIGHTS.", file)
        return
    try:
        with silence():
            checkpointer = HealthyCheckpointer(model)
            checkpointer.load(file, checkpointables=[])
    except WeightsError as error:  # which names the file
        findings.add("error", "weights that cannot be loaded", "Correct MODEL.WEIGHTS.", str(error))
        return
    except Exception as error:  # whatever it is, it would stop the training
        advice = "Correct MODEL.WEIGHTS."
        findings.add(
            "error",
            "weights that cannot be loaded",
            advice,
            f"{file}: {type(error).__name__}: {error}",
        )
        return
    matched, total = checkpointer.num_matched, checkpointer.num_tensors
    if matched < _FEW_WEIGHTS * total:
        place = f"{file}: {matched} of {total} tensors; the rest starts at random"
        findings.add(
            "warning", "weights that fit a small part of the model", "Is it the right file?", place
        )
    elif matched < total:
        place = f"{file}: {matched} of {total} tensors"
        findings.add("note", "weights that leave a part of the model as it starts", "", place)
