"""The step at which a run stopped: kept in a file, and repeated from it.

`nonfinite_step_<iteration>_rank<i>.pth` in OUTPUT_DIR holds what process i needs to repeat it:
model, buffers and optimizer before the step, its batch and the config.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Union

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

from focal_det.env import ensure_environment
from focal_det.files import open_to_replace

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
) -> None:
    """Keep a step, in types that can be read without running code.

    Raises:
        DiskFullError: the disk is full.
    """
    content = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "iteration": iteration,
        "batch": [_to_plain(x) for x in batch],
        "config": cfg.dump(),
    }
    with open_to_replace(file) as stream:
        torch.save(content, stream)


def reproduce_step(file: Union[str, Path]) -> dict[str, Any]:
    """Repeat the forward and backward pass of a kept step, on the device of its config.

    It runs in one process: a normalizer that counts over all processes counts this batch alone.

    Args:
        file: `nonfinite_step_<iteration>_rank<i>.pth`; read without running code.

    Returns:
        "iteration"; "images", their files or ids; "losses" by name; "nonfinite_gradients", names
        of the parameters with one; "largest", |logit| and |delta| in evaluation mode.

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
        losses = model(batch)
    # Outside of autocast, as in Detectron2's AMPTrainer.
    sum(losses.values()).backward()
    return {
        "iteration": content["iteration"],
        "images": [x.get("file_name", x.get("image_id")) for x in batch],
        "losses": {k: float(v.detach()) for k, v in losses.items()},
        "nonfinite_gradients": find_nonfinite_gradients(model),
        "largest": largest,
    }


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

    Empty for a model without `predict`. The model runs in evaluation mode, so that its buffers do
    not change and no process waits for another.
    """
    predict = getattr(model, "predict", None)
    if predict is None:
        return {}
    was_training = model.training
    model.eval()
    try:
        _, _, *outputs = predict(batch)
    finally:
        model.train(was_training)
    # `amax` propagates NaN; Python's `max` would depend on the order of the levels.
    return {
        name: float(torch.stack([x.abs().amax() for x in levels]).amax())
        for name, levels in zip(("|logit|", "|delta|"), outputs)
    }
