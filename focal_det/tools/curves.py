"""Curves of classification losses: value and gradient against p_t and x_t, figures 1, 5 and 6 of the paper for any loss."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from focal_det.experiments.loss_curves import compute_loss_curves
from focal_det.experiments.loss_specs import parse_loss
from focal_det.losses import ClsLoss
from focal_det.registry import CLS_LOSS_REGISTRY, get_constructor_args
from focal_det.report.loss_curves import MAX_LOSSES, draw_loss_curves, get_label

FIGURE_1 = [f"FocalLoss:gamma={gamma},alpha=-1" for gamma in (0, 0.5, 1, 2, 5)]
_SUFFIXES = (".png", ".svg", ".pdf")


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; see `--help`."""
    parser = _make_parser()
    args = parser.parse_intermixed_args(argv)
    for file in args.write:
        if file.suffix.lower() not in _SUFFIXES:
            parser.error(
                f"--write takes files that end in {', '.join(_SUFFIXES)}, got {str(file)!r}; losses come before --write"
            )
    if not 0 <= args.iou <= 1:
        parser.error(f"--iou must be in [0, 1], got {args.iou}")

    curves = {}
    for spec in args.losses:
        try:
            name, values = parse_loss(spec)
            curves[get_label(name, values)] = compute_loss_curves(
                _build(name, values), iou=args.iou
            )
        except ValueError as error:
            parser.error(f"{spec}: {error}")
    if len(curves) > MAX_LOSSES:
        parser.error(f"a picture has room for {MAX_LOSSES} losses, got {len(curves)}")
    for file in args.write:
        file.parent.mkdir(parents=True, exist_ok=True)
    draw_loss_curves(curves, args.write)
    print(f"The curves are in {', '.join(str(file.resolve()) for file in args.write)}")
    return 0


def _make_parser() -> argparse.ArgumentParser:
    known = (
        f"{name} ({', '.join(get_constructor_args(cls))})"
        for name, cls in sorted(CLS_LOSS_REGISTRY)
    )
    parser = argparse.ArgumentParser(
        prog="focal-det curves", description=__doc__, epilog=f"Losses: {', '.join(known)}."
    )
    what = "NAME or NAME:ARGUMENT=VALUE,..., such as FocalLoss:gamma=2,alpha=-1; without any, figure 1 of the paper"
    parser.add_argument("losses", nargs="*", default=FIGURE_1, metavar="LOSS", help=what)
    what = "pictures to write, .png, .svg or .pdf (default: curves.png)"
    parser.add_argument(
        "--write", nargs="+", type=Path, default=[Path("curves.png")], metavar="FILE", help=what
    )
    what = "IoU of objects with their boxes, for losses that use it (default: %(default)s)"
    parser.add_argument("--iou", type=float, default=1.0, help=what)
    return parser


def _build(name: str, args: dict[str, Any]) -> ClsLoss:
    """The registered loss for one class; every refusal is a ValueError."""
    try:
        return CLS_LOSS_REGISTRY.build(name, args, num_classes=1)
    except (KeyError, TypeError) as error:
        raise ValueError(error.args[0]) from error


if __name__ == "__main__":
    sys.exit(main())
