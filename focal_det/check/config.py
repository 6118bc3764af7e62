"""Checks of a config by itself: the names in it, its numbers, and the machine it is for."""

import os

import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY

from focal_det.data.catalog import describe_unregistered
from focal_det.messages import describe_unknown, shorten
from focal_det.modeling.build import find_not_finite, flatten_config
from focal_det.modeling.parts import find_unread

from .findings import Findings
from .plan import Plan
from .rules import (
    FOLDER_NOT_CREATED,
    FOREIGN_KEY,
    LATE_STEP,
    LONG_WARMUP,
    NO_EVALUATOR,
    NO_GPU,
    NO_TRAINING_SET,
    NON_FINITE_NUMBER,
    NUMBER_NOT_POSITIVE,
    SHORT_WARMUP,
    SMALL_PIXEL_MEAN,
    UNREAD_KEY,
    UNREGISTERED_ARCHITECTURE,
    UNREGISTERED_DATASET,
    UNUSUAL_LEARNING_RATE,
)
from .stages import Stage, register_check

_EVALUATORS = ("coco", "lvis", "pascal_voc")
# Detectron2's learning rates for 16 images: of dense detectors, and of those with two stages.
_DENSE_LR = 0.01
_TWO_STAGE_LR = 0.02
# BASE_LR may be _WIDE times lower and _NARROW times higher than expected; with normalization or
# without MODEL.WEIGHTS, also _WIDE times higher.
_NARROW = 4
_WIDE = 40
_SHORT_WARMUP = 100  # iterations
_FOREIGN_NODES = ("MODEL.ROI_", "MODEL.RPN.", "MODEL.PROPOSAL_GENERATOR.")


@register_check(Stage.CONFIG)
def check_names(plan: Plan, findings: Findings) -> None:
    """Check that the architecture and the data sets are registered."""
    architecture = plan.cfg.MODEL.META_ARCHITECTURE
    if architecture not in META_ARCH_REGISTRY:
        place = describe_unknown("MODEL.META_ARCHITECTURE", architecture, dict(META_ARCH_REGISTRY))
        findings.add(UNREGISTERED_ARCHITECTURE, place)
    for key in ("TRAIN", "TEST"):
        for name in plan.get_names(key):
            if name not in DatasetCatalog.list():
                place = f"DATASETS.{key}: {describe_unregistered(name)}"
                file = os.environ.get("FOCAL_DET_DATASETS", "not set")
                findings.add(UNREGISTERED_DATASET, place, file=file)
            elif key == "TEST":
                _check_evaluator(name, findings)
    if not plan.cfg.DATASETS.TRAIN:
        findings.add(NO_TRAINING_SET, "DATASETS.TRAIN is empty")


def _check_evaluator(name: str, findings: Findings) -> None:
    if MetadataCatalog.get(name).get("evaluator_type") not in _EVALUATORS:
        findings.add(NO_EVALUATOR, name, known=", ".join(_EVALUATORS))


@register_check(Stage.CONFIG)
def check_numbers(plan: Plan, findings: Findings) -> None:
    """Check that all numbers are finite, and that the solver's are positive and fit together."""
    for key, value in find_not_finite(plan.cfg).items():
        findings.add(NON_FINITE_NUMBER, f"{key}: {value}")
    solver = plan.cfg.SOLVER
    for key in ("BASE_LR", "IMS_PER_BATCH", "MAX_ITER"):
        if solver[key] <= 0:
            # The checks below assume that these numbers are positive.
            findings.add(NUMBER_NOT_POSITIVE, f"SOLVER.{key} {solver[key]}")
            return
    _check_schedule(plan, findings)
    _check_learning_rate(plan, findings)


def _check_schedule(plan: Plan, findings: Findings) -> None:
    solver = plan.cfg.SOLVER
    late = [x for x in solver.STEPS if x >= solver.MAX_ITER]
    # Other schedules do not read STEPS.
    if late and solver.LR_SCHEDULER_NAME == "WarmupMultiStepLR":
        findings.add(LATE_STEP, f"{late} with SOLVER.MAX_ITER {solver.MAX_ITER}")
    if solver.WARMUP_ITERS >= solver.MAX_ITER:
        place = f"SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS}, SOLVER.MAX_ITER {solver.MAX_ITER}"
        findings.add(LONG_WARMUP, place)


def _check_learning_rate(plan: Plan, findings: Findings) -> None:
    solver = plan.cfg.SOLVER
    has_weights = bool(plan.cfg.MODEL.WEIGHTS)
    is_normalized = bool(plan.cfg.MODEL.FPN.NORM or plan.settings.node.get("NORM"))
    rate = _TWO_STAGE_LR if plan.settings.has_two_stages else _DENSE_LR
    expected = solver.IMS_PER_BATCH / 16 * rate
    most = _NARROW
    if is_normalized or not has_weights:
        most = _WIDE
    if not 1 / _WIDE <= solver.BASE_LR / expected <= most:
        place = f"{solver.BASE_LR} for {solver.IMS_PER_BATCH} images"
        findings.add(UNUSUAL_LEARNING_RATE, place, rate=rate, expected=f"{expected:.3g}")
    elif has_weights and expected < solver.BASE_LR and solver.WARMUP_ITERS < _SHORT_WARMUP:
        place = f"SOLVER.BASE_LR {solver.BASE_LR}, SOLVER.WARMUP_ITERS {solver.WARMUP_ITERS}"
        findings.add(SHORT_WARMUP, place)


@register_check(Stage.CONFIG)
def check_other_architectures(plan: Plan, findings: Findings) -> None:
    """Find changed keys of other architectures, which a RetinaNet does not read."""
    if not plan.settings.is_dense:
        return
    defaults = flatten_config(get_cfg())
    changed = [
        f"{key} {value}"
        for key, value in flatten_config(plan.cfg).items()
        if key.startswith(_FOREIGN_NODES) and value != defaults.get(key)
    ]
    if changed:
        findings.add(
            FOREIGN_KEY,
            shorten(changed),
            node_key=plan.settings.node_key,
            num_classes_key=plan.settings.num_classes_key,
        )


@register_check(Stage.CONFIG)
def check_unread_keys(plan: Plan, findings: Findings) -> None:
    """Find keys of MODEL.FOCAL_DET that were changed and that no part of the detector reads."""
    for unread in find_unread(plan.cfg, get_cfg()):
        values = shorten([f"{key} {value}" for key, value in unread.values.items()])
        readers = " or ".join(unread.readers)
        place = f"{values}: read by {readers}, but {unread.part_key} is {unread.part}"
        findings.add(UNREAD_KEY, place)


@register_check(Stage.CONFIG)
def check_pixel_mean(plan: Plan, findings: Findings) -> None:
    """Find a pixel mean for values from 0 to 1, the range that other libraries use."""
    mean = list(plan.cfg.MODEL.PIXEL_MEAN)
    if any(mean) and max(mean) <= 1:
        findings.add(SMALL_PIXEL_MEAN, f"MODEL.PIXEL_MEAN {mean}")


@register_check(Stage.CONFIG)
def check_machine(plan: Plan, findings: Findings) -> None:
    """Check that this machine has the GPU and the folder that training needs."""
    device = plan.cfg.MODEL.DEVICE
    if device.startswith("cuda") and not torch.cuda.is_available():
        # None keeps the rule's own severity.
        severity = "error" if plan.is_training else None
        findings.add(NO_GPU, f"MODEL.DEVICE {device}", severity=severity)
    if plan.is_training:
        try:
            plan.output_dir.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            findings.add(FOLDER_NOT_CREATED, f"OUTPUT_DIR: {error}")
