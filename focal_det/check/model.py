"""Check of the model: whether it can be built, and how many of its tensors MODEL.WEIGHTS fills."""

from pathlib import Path

import numpy as np
from detectron2.modeling import build_model
from torch import nn

from focal_det.checkpoint.checkpointer import HealthyCheckpointer
from focal_det.checkpoint.weights_file import WeightsError
from focal_det.messages import describe_error
from focal_det.model_zoo.path_handler import is_download
from focal_det.model_zoo.torchvision_weights import get_pixel_statistics

from .findings import Findings
from .plan import Plan, silence
from .rules import (
    FEW_WEIGHTS,
    MISSING_WEIGHTS,
    MODEL_NOT_BUILT,
    OTHER_PIXELS,
    PARTIAL_WEIGHTS,
    UNLOADABLE_WEIGHTS,
)
from .stages import Stage, register_check

# Share of the model's tensors; those of a small ResNet are a third of a RetinaNet's.
_FEW_WEIGHTS = 0.25
# Of a mean or a deviation, on the scale from 0 to 255.
_MAX_DIFFERENCE = 1.0


@register_check(Stage.MODEL)
def check_model(plan: Plan, findings: Findings) -> None:
    """Build the model, load MODEL.WEIGHTS and count what fits.

    Weights at a URL are not checked; training downloads them.
    """
    copy = plan.cfg.clone()
    copy.MODEL.DEVICE = "cpu"  # nothing is computed, and the GPU may be elsewhere
    try:
        with silence():
            model = build_model(copy)
    except Exception as error:  # whatever it is, it would stop training
        message = describe_error(error)
        # An error of ours says what to change; one of a library may be no more than a value.
        if not isinstance(error, ValueError):
            message = f"{type(error).__name__}: {message}"
        findings.add(MODEL_NOT_BUILT, message)
        return
    weights = plan.cfg.MODEL.WEIGHTS
    # A download may take longer than all other checks.
    if weights and not is_download(weights):
        _check_weights(weights, model, findings)


@register_check(Stage.CONFIG)
def check_pixels(plan: Plan, findings: Findings) -> None:
    """Compare the order and statistics of pixels with those that MODEL.WEIGHTS was trained with."""
    cfg = plan.cfg
    # A yaml file may say null.
    expected = get_pixel_statistics(cfg.MODEL.WEIGHTS or "")
    if expected is None:
        return
    order = cfg.INPUT.FORMAT
    mean = list(cfg.MODEL.PIXEL_MEAN)
    std = list(cfg.MODEL.PIXEL_STD)
    is_same = order == expected.order and len(mean) == len(std) == len(expected.mean)
    if is_same and np.allclose([mean, std], [expected.mean, expected.std], atol=_MAX_DIFFERENCE):
        return
    findings.add(
        OTHER_PIXELS,
        f"{cfg.MODEL.WEIGHTS}: INPUT.FORMAT {order}, MODEL.PIXEL_MEAN {mean}, PIXEL_STD {std}",
        order=expected.order,
        mean=[round(x, 3) for x in expected.mean],
        std=[round(x, 3) for x in expected.std],
    )


def _check_weights(file: str, model: nn.Module, findings: Findings) -> None:
    if "://" not in file and not Path(file).is_file():
        findings.add(MISSING_WEIGHTS, file)
        return
    try:
        with silence():
            checkpointer = HealthyCheckpointer(model)
            checkpointer.load(file, checkpointables=[])
    except WeightsError as error:  # names the file
        findings.add(UNLOADABLE_WEIGHTS, str(error))
        return
    except Exception as error:  # whatever it is, it would stop training
        findings.add(UNLOADABLE_WEIGHTS, f"{file}: {type(error).__name__}: {error}")
        return
    matched = checkpointer.num_matched
    total = checkpointer.num_tensors
    place = f"{file}: {matched} of {total} tensors"
    if matched < _FEW_WEIGHTS * total:
        findings.add(FEW_WEIGHTS, place)
    elif matched < total:
        findings.add(PARTIAL_WEIGHTS, place)
