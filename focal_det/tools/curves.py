"""Plot the value and gradient of losses.

Against p_t and x_t, as figures 1, 5 and 6 of the paper.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from focal_det.experiments.loss_curves import compute_loss_curves
from focal_det.experiments.loss_specs import build_loss, parse_loss
from focal_det.registry import CLS_LOSS_REGISTRY, get_constructor_args
from focal_det.report.loss_curves import get_label, make_loss_curves_figure

from ._arguments import add_output_argument, check_picture_file
from ._program import run_program

FIGURE_1 = [f"FocalLoss:gamma={gamma},alpha=-1" for gamma in (0, 0.5, 1, 2, 5)]
_EXAMPLE = "focal-det curves FocalLoss:gamma=2,alpha=0.25 QualityFocalLoss --output curves.svg"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; see `--help`."""
    doc = f"{__doc__}\n\nlosses:\n{_list_losses()}"
    return run_program("curves", doc, _add_arguments, _run, argv, example=_EXAMPLE)


def _list_losses() -> str:
    """A line for each registered loss, with its arguments."""
    losses = sorted(CLS_LOSS_REGISTRY)
    return "\n".join(f"  {name} ({', '.join(get_constructor_args(cls))})" for name, cls in losses)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "losses",
        nargs="*",
        default=FIGURE_1,
        metavar="LOSS",
        help="NAME or NAME:ARGUMENT=VALUE,..., such as FocalLoss:gamma=2,alpha=-1 "
        "(default: figure 1 of the paper)",
    )
    add_output_argument(
        parser,
        "pictures to write, .png, .svg or .pdf (default: curves.png)",
        nargs="+",
        required=False,
        metavar="FILE",
    )
    what = "IoU of objects with their boxes, for losses that use it (default: %(default)s)"
    parser.add_argument("--iou", type=float, default=1.0, help=what)


def _run(args: argparse.Namespace) -> None:
    files = args.output or [Path("curves.png")]
    for file in files:
        check_picture_file(file, advice="losses come before --output")
    if not 0 <= args.iou <= 1:
        raise ValueError(f"--iou must be in [0, 1], got {args.iou}")
    curves = {}
    for spec in args.losses:
        # One logit per anchor: the curves are functions of a single number.
        loss = build_loss(spec, num_classes=1)
        try:
            curves[get_label(*parse_loss(spec))] = compute_loss_curves(loss, iou=args.iou)
        # Some losses have no curve; with several losses, the message must say which.
        except ValueError as error:
            raise ValueError(f"{spec}: {error}") from None
    figure = make_loss_curves_figure(curves)
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file)
    print(f"The curves are in {', '.join(str(file.resolve()) for file in files)}")


if __name__ == "__main__":
    sys.exit(main())
