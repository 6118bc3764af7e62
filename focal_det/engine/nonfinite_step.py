"""The step at which a run stopped: kept in a file, and repeated from it.

`nonfinite_step_<iteration>_rank<i>.pth` in OUTPUT_DIR holds what process i needs to repeat
the step: model, buffers and optimizer before the step, random generators, its batch and the config.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Union

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from focal_det.env import ensure_environment
from focal_det.files import open_to_replace

from .run_state import kept_generators, set_torch_generators

_FIELDS = ("file_name", "image_id", "height", "width")  # of an image, besides pixels and objects
_REQUIRED = {"model", "batch", "config", "iteration"}


def get_step_files(folder: Path, iteration: int, num_processes: int) -> list[Path]:
    """The files in which the processes of a run keep an iteration's step, by rank."""
    return [
        folder / f"nonfinite_step_{iteration:07d}_rank{rank}.pth" for rank in range(num_processes)
    ]


def save_step(
    file: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batch: Sequence[dict[str, Any]],
    *,
    iteration: int,
    cfg: CfgNode,
    generators: Mapping[str, Tensor],
) -> None:
    """Keep a step, in types that can be read without running code.

    Args:
        generators: what `get_torch_generators` returned before the step. Two-stage detectors draw
            their samples from these generators.

    Raises:
        DiskFullError: the disk is full.
    """
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "iteration": iteration,
        "batch": [_to_plain(x) for x in batch],
        "config": cfg.dump(),
        "generators": dict(generators),
    }
    with open_to_replace(file) as stream:
        torch.save(content, stream)


def reproduce_step(file: Union[str, Path]) -> dict[str, Any]:
    """Repeat the forward and backward pass of a kept step, on the device of its config.

    It runs in one process: a normalizer that counts over all processes counts this batch alone.

    Args:
        file: `nonfinite_step_<iteration>_rank<i>.pth`; read without running code.

    Returns:
        "iteration"; "images", their files or ids; "losses" by name, none if the forward pass stops
        at a non-finite box or score; "forward_error", the message of that error, or else "";
        "nonfinite_gradients", names of the parameters with one; "largest", |logit| and |delta| in
        evaluation mode.

    Raises:
        OSError: the file cannot be opened.
        ValueError: the file holds no kept step, or its model trains masks or keypoints.
    """
    ensure_environment()
    content = _read_step(file)
    model = _build_model(content, file)
    batch = [from_plain(x) for x in content["batch"]]
    cfg = content["config"]
    with torch.autocast(torch.device(cfg.MODEL.DEVICE).type, enabled=cfg.SOLVER.AMP.ENABLED):
        largest = compute_largest_outputs(model, batch)
        losses, error = _compute_losses(model, batch, content)
    # Outside of autocast, as in Detectron2's AMPTrainer.
    torch.autograd.backward(list(losses.values()))
    return {
        "iteration": content["iteration"],
        "images": [x.get("file_name", x.get("image_id")) for x in batch],
        "losses": {k: float(v.detach()) for k, v in losses.items()},
        "forward_error": error,
        "nonfinite_gradients": find_nonfinite_gradients(model),
        "largest": largest,
    }


def _compute_losses(
    model: nn.Module, batch: list[dict[str, Any]], content: Mapping[str, Any]
) -> tuple[dict[str, Tensor], str]:
    """Repeat the forward pass of a kept step with the random samples that it drew.

    Returns:
        The losses and ""; or no losses and the error's message if the forward pass stops.
    """
    # Two-stage detectors log scalars while they train, and need an EventStorage for them.
    with kept_generators(), EventStorage(content["iteration"]):
        # Files of older versions have none.
        set_torch_generators(content.get("generators", {}))
        try:
            return model(batch), ""
        except FloatingPointError as error:
            return {}, str(error)


def _read_step(file: Union[str, Path]) -> dict[str, Any]:
    """What `save_step` has written, with "config" as a CfgNode."""
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # torch raises errors of many types for files that are not its own
        content = {}
    if not (isinstance(content, dict) and content.keys() >= _REQUIRED):
        raise ValueError(
            f"{file} is not a step kept by focal-det train: those are nonfinite_step_*.pth in the "
            "OUTPUT_DIR of a run"
        )
    return {**content, "config": CfgNode.load_cfg(content["config"])}


def _build_model(content: dict[str, Any], file: Union[str, Path]) -> nn.Module:
    """The model of a kept step in training mode, with the state it had before the step."""
    cfg = content["config"]
    if cfg.MODEL.MASK_ON or cfg.MODEL.KEYPOINT_ON:
        raise ValueError(
            f"{file} cannot be reproduced: its model trains masks or keypoints, and kept steps "
            "hold boxes and classes only"
        )
    # The batch is in the file; the data sets may be gone, or on another machine.
    cfg.DATASETS.TRAIN = ()
    cfg.DATASETS.TEST = ()
    cfg.MODEL.FOCAL_DET.DATASETS = []
    cfg.VIS_PERIOD = 0
    model = build_model(cfg).train()
    model.load_state_dict(content["model"])
    return model


def _to_plain(item: dict[str, Any]) -> dict[str, Any]:
    """An image of a batch in types that `torch.load(weights_only=True)` accepts.

    Only the boxes and classes of its objects are kept.
    """
    plain = {k: item[k] for k in _FIELDS if isinstance(item.get(k), (str, int, float))}
    plain["image"] = item["image"].cpu()
    if "instances" in item:
        plain["gt_boxes"] = item["instances"].gt_boxes.tensor.cpu()
        plain["gt_classes"] = item["instances"].gt_classes.cpu()
    return plain


def from_plain(item: dict[str, Any]) -> dict[str, Any]:
    """An image of a kept batch as the model takes it, with its objects as `Instances`."""
    if "gt_boxes" not in item:
        return item
    height, width = item["image"].shape[1:]
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(item["gt_boxes"])
    instances.gt_classes = item["gt_classes"]
    return {**item, "instances": instances}


def find_nonfinite_gradients(model: nn.Module) -> list[str]:
    """Names of the parameters with a non-finite gradient."""
    return [
        name
        for name, x in model.named_parameters()
        if x.grad is not None and not x.grad.isfinite().all()
    ]


@torch.no_grad()
def compute_largest_outputs(model: nn.Module, batch: Sequence[dict[str, Any]]) -> dict[str, float]:
    """The largest "|logit|" and "|delta|" of a batch; NaN if any of them is NaN.

    A two-stage detector has them for each stage, as "|logit| of proposal_generator" and so on: for
    each module with a method `get_prediction_head`. Empty if the model has no such module.

    The model runs in evaluation mode, so that its buffers do not change and no process waits for
    another.
    """
    found: dict[str, list[Tensor]] = defaultdict(list)
    hooks = []
    for path, part in model.named_modules():
        if hasattr(part, "get_prediction_head"):
            collect = partial(_collect_outputs, found, path)
            hooks.append(part.get_prediction_head().register_forward_hook(collect))
    if not hooks:
        return {}
    # The outputs of the heads are enough: a model that can do so leaves out post-processing.
    predict = getattr(model, "predict", model)
    was_training = model.training
    model.eval()
    try:
        # It may stop at a box that is infinite or NaN, whose deltas have been collected by then.
        with suppress(FloatingPointError):
            predict(batch)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    # `amax` propagates NaN; Python's `max` would depend on the order of the levels.
    return {name: float(torch.stack(x).amax()) for name, x in found.items() if x}


def _collect_outputs(
    found: dict[str, list[Tensor]], path: str, head: nn.Module, inputs: Any, outputs: Any
) -> None:
    """Forward hook: add the largest logit and delta of each level, or of the only one."""
    for kind, values in zip(("|logit|", "|delta|"), outputs):
        levels = [values] if isinstance(values, Tensor) else values
        name = f"{kind} of {path}" if path else kind
        # There may be no proposals.
        found[name] += [x.abs().amax() for x in levels if x.numel()]
