"""Do a step again at which `focal-det train` stopped because a loss or gradient was not finite."""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from focal_det.engine.step_guard import find_nonfinite_gradients, from_plain, get_largest_outputs
from focal_det.env import ensure_environment
from focal_det.messages import shorten


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; see `--help`."""
    parser = argparse.ArgumentParser(prog="focal-det reproduce", description=__doc__)
    parser.add_argument(
        "file", type=Path, help="nonfinite_step_<iteration>_rank<process>.pth of a run's OUTPUT_DIR"
    )
    parser.add_argument(
        "--json", action="store_true", help="print it as json, with the names of all parameters"
    )
    args = parser.parse_args(argv)
    try:
        step = reproduce_step(args.file)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    print(json.dumps(step, indent=1) if args.json else "\n".join(_describe(step)))
    return 0


def _describe(step: dict[str, Any]) -> list[str]:
    wrong = step["nonfinite_gradients"]
    is_wrong = wrong or not all(map(math.isfinite, step["losses"].values()))
    return [
        f"iteration {step['iteration']}: {'not finite again' if is_wrong else 'all is finite'}",
        *(f"  {name}: {value:.6g}" for name, value in step["losses"].items()),
        f"  parameters whose gradient is not finite: {len(wrong)}{f', {shorten(wrong)}' if wrong else ''}",
        *(
            f"  largest {name}, in evaluation mode: {value:.6g}"
            for name, value in step["largest"].items()
        ),
        *(f"  image: {name}" for name in step["images"]),
    ]


def reproduce_step(file: Union[str, Path]) -> dict[str, Any]:
    """Do forward and backward of a step that a training stopped at, on the config's device, in one process.

    Args:
        file: `nonfinite_step_<iteration>_rank<process>.pth`; read without running code.

    Returns:
        "iteration"; "images"; "losses" by name; "nonfinite_gradients", names of the parameters whose gradient is not finite;
        "largest", |logit| and |delta| in evaluation mode. A normalizer that counts over several processes counts this one's batch
        only.

    Raises:
        ValueError: another file, or a step of a model that trains on more than boxes and classes.
    """
    ensure_environment()
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # torch raises whatever comes, of a file that is not its own
        content = {}
    if not {"model", "batch", "config"} <= set(content):
        raise ValueError(
            f"{file} is no step that focal-det train has kept; those are nonfinite_step_*.pth of a run's OUTPUT_DIR"
        )
    cfg = CfgNode.load_cfg(content["config"])
    if cfg.MODEL.MASK_ON or cfg.MODEL.KEYPOINT_ON:
        raise ValueError(
            f"{file} is of a model with masks or keypoints, which are not kept: it cannot be done again"
        )
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()  # the images are in the file
    cfg.MODEL.FOCAL_DET.DATASETS = []
    model = build_model(cfg).train()
    model.load_state_dict(content["model"])
    batch = [from_plain(x) for x in content["batch"]]
    with torch.autocast(model.device.type, enabled=cfg.SOLVER.AMP.ENABLED):
        outputs = get_largest_outputs(model, batch)
        losses = model(batch)
    sum(losses.values()).backward()
    return {
        "iteration": content["iteration"],
        "images": [x.get("file_name", x.get("image_id")) for x in batch],
        "losses": {k: float(v.detach()) for k, v in losses.items()},
        "nonfinite_gradients": find_nonfinite_gradients(model),
        "largest": outputs,
    }


if __name__ == "__main__":
    sys.exit(main())
