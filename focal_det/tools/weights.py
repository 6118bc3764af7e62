"""Compute alpha and pi per class from the training set.

Writes them into a config, and a picture of them beside it.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Optional

from focal_det.config import find_config_file
from focal_det.env import load_config
from focal_det.imbalance.class_weights import MAX_ALPHA, WEIGHT_METHODS
from focal_det.imbalance.weights_config import check_weights_file, write_weights
from focal_det.imbalance.weights_report import (
    WeightOptions,
    describe_advice,
    describe_method,
    make_table,
    measure_class_weights,
    shorten_table,
    warn_unmeasured,
)
from focal_det.messages import to_command_line
from focal_det.report.class_weights import make_class_weights_figure

from ._arguments import add_config_arguments, add_output_argument, at_least
from ._program import run_program

_EXAMPLE = "focal-det weights --config-file my_config.yaml --output my_config_weights.yaml"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; see `--help`."""
    return run_program("weights", __doc__, _add_arguments, _run, argv, example=_EXAMPLE)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    what = "config to write, based on --config-file; a .png of the same name shows the numbers"
    add_output_argument(parser, what, metavar="FILE.yaml")
    what = "alpha as 1/n, 1/sqrt(n), 1/E_n (default: %(default)s)"
    option("--method", choices=WEIGHT_METHODS, default="sqrt", help=what)
    what = "beta of the effective number E_n, in [0, 1) (default: %(default)s)"
    option("--beta", type=float, default=0.999, help=what)
    what = "no class has a larger alpha (default: %(default)s)"
    option("--max-alpha", type=float, default=MAX_ALPHA, help=what)
    what = "images in which positives are counted for pi; 0 for all (default: %(default)s)"
    option("--images", type=at_least(0), default=1000, help=what)
    add_config_arguments(parser)


def _run(args: argparse.Namespace) -> None:
    config_file = find_config_file(args.config_file)
    check_weights_file(args.output, config_file)
    cfg = load_config(config_file, args.opts)
    options = WeightOptions(method=args.method, beta=args.beta, max_alpha=args.max_alpha)
    report = measure_class_weights(cfg, options, args.images)
    warn_unmeasured(cfg, report)
    write_weights(report, cfg, config_file, args.opts, args.output, args.command_line)
    picture = args.output.with_suffix(".png")
    make_class_weights_figure(report.weights, report.title).savefig(picture)

    table = shorten_table(make_table(report.weights))
    lines = [*describe_method(report), *describe_advice(cfg, report)]
    print(report.title, *lines, "", *table, "", sep="\n")
    print(f"config:  {args.output}")
    print(f"picture: {picture}")
    output_dir = f"{cfg.OUTPUT_DIR.rstrip('/')}_{args.output.stem}"
    words = ["focal-det", "train", "--config-file", str(args.output), "OUTPUT_DIR", output_dir]
    print(f"train:   {to_command_line(words)}")


if __name__ == "__main__":
    sys.exit(main())
