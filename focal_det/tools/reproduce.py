"""Repeat a step at which `focal-det train` stopped for a non-finite loss or gradient.

Exit codes: 0 done, 2 a file that cannot be used, 3 a bug in focal_det, 130 interrupted.
"""

import argparse
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from focal_det.engine.nonfinite_step import reproduce_step
from focal_det.messages import shorten

from ._arguments import add_json_argument
from ._program import run_program


def main(argv: Optional[Sequence[str]] = None) -> int:
    return run_program(
        "reproduce",
        __doc__,
        _add_arguments,
        _run,
        argv,
        example="focal-det reproduce output/nonfinite_step_0000042_rank0.pth",
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file", type=Path, help="nonfinite_step_<iteration>_rank<i>.pth in the OUTPUT_DIR of a run"
    )
    add_json_argument(parser)


def _run(args: argparse.Namespace) -> None:
    step = reproduce_step(args.file)
    if args.json:
        print(json.dumps(step, indent=1))
    else:
        print("\n".join(_describe(step)))


def _describe(step: dict[str, Any]) -> list[str]:
    losses = step["losses"]
    gradients = step["nonfinite_gradients"]
    outcome = "all is finite"
    if step["forward_error"]:
        outcome = f"the forward pass stops again: {step['forward_error']}"
    elif gradients or not all(map(math.isfinite, losses.values())):
        outcome = "non-finite again"
    # A non-finite loss spoils nearly every gradient; a few names are enough.
    names = f", {shorten(gradients)}" if gradients else ""
    return [
        f"iteration {step['iteration']}: {outcome}",
        *(f"  {name}: {value:.6g}" for name, value in losses.items()),
        f"  parameters with a non-finite gradient: {len(gradients)}{names}",
        *(f"  largest {k}, in evaluation mode: {v:.6g}" for k, v in step["largest"].items()),
        *(f"  image: {name}" for name in step["images"]),
    ]


if __name__ == "__main__":
    sys.exit(main())
