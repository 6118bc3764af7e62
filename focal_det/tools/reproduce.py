"""Do a step again at which `focal-det train` stopped because a loss or gradient was not finite."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional, Union

import focal_det.host  # noqa: F401  (first: says how to get Detectron2)

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from focal_det.engine.step_guard import find_sick_gradients, from_plain, get_largest_outputs
from focal_det.env import ensure_environment


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; see `--help`."""
    parser = argparse.ArgumentParser(prog="focal-det reproduce", description=__doc__)
    parser.add_argument("file", type=Path, help="sick_step_<iteration>_rank<process>.pth of a run's OUTPUT_DIR")
    args = parser.parse_args(argv)
    try:
        print(json.dumps(reproduce_step(args.file), indent=1))
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return 0


def reproduce_step(file: Union[str, Path]) -> dict[str, Any]:
    """Do forward and backward of a step that a training stopped at, on the config's device, in one process.

    Args:
        file: `sick_step_<iteration>_rank<process>.pth`; read without running code.

    Returns:
        "iteration"; "images"; "losses" by name; "sick_gradients", names of the parameters whose gradient is not finite;
        "largest", |logit| and |delta|. A normalizer that counts over several processes counts this one's batch only.

    Raises:
        ValueError: another file.
    """
    ensure_environment()
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # torch raises whatever comes, of a file that is not its own
        content = {}
    if not {"model", "batch", "config"} <= set(content):
        raise ValueError(f"{file} is no step that focal-det train has kept; those are sick_step_*.pth of a run's OUTPUT_DIR")
    model = build_model(CfgNode.load_cfg(content["config"])).train()
    model.load_state_dict(content["model"])
    batch = [from_plain(x) for x in content["batch"]]
    outputs = get_largest_outputs(model, batch)
    losses = model(batch)
    sum(losses.values()).backward()
    return {
        "iteration": content["iteration"],
        "images": [x.get("file_name", x.get("image_id")) for x in batch],
        "losses": {k: float(v) for k, v in losses.items()},
        "sick_gradients": find_sick_gradients(model),
        "largest": outputs,
    }


if __name__ == "__main__":
    sys.exit(main())
