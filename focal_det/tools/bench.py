"""Measure speed and memory against other libraries."""

import argparse
import functools
import json
import sys
from collections.abc import Sequence
from typing import Optional

from focal_det.env import ensure_environment
from focal_det.experiments.bench_cases import (
    BENCHMARKS,
    DTYPES,
    get_file_name,
    make_benchmark,
    measure_cases,
)
from focal_det.experiments.bench_models import OURS
from focal_det.files import write_json
from focal_det.report.scaling import make_scaling_figure, make_timing_table

from ._arguments import add_json_argument, add_output_argument
from ._program import run_program

_QUICK_NOTE = """\
--quick only shows that everything runs: its small inputs favour the peers (fixed costs of a call
outweigh the work), and one round is not a measurement. To measure, run without --quick."""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; see `--help`."""
    example = "focal-det bench loss --output output/bench"
    return run_program("bench", __doc__, _add_arguments, _run, argv, example=example)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("what", choices=sorted(BENCHMARKS), help="part to measure")
    add("--rounds", type=int, default=7, help="calls of each contender (default: %(default)s)")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="(default: %(default)s)")
    dtypes = "of the logits; for step and infer, of mixed precision (default: %(default)s)"
    add("--dtype", choices=DTYPES, default="float32", help=dtypes)
    quick = "small inputs, one round: shows that it runs, not how fast"
    add("--quick", action="store_true", help=quick)
    what = "folder for a JSON file and, for loss, a picture, named after the conditions"
    add_output_argument(parser, what, required=False, metavar="FOLDER")
    add_json_argument(parser)


def _run(args: argparse.Namespace) -> None:
    ensure_environment()
    options = {"device": args.device, "dtype": args.dtype, "rounds": args.rounds}
    content = make_benchmark(args.what, args.command_line, **options, quick=args.quick)
    show = print
    if args.json:  # stdout is for the JSON alone
        show = functools.partial(print, file=sys.stderr)
    conditions = {key: content[key] for key in ("device", "threads", "dtype")}
    conditions["torch"] = content["versions"]["torch"]
    show(", ".join(f"{key}: {value}" for key, value in conditions.items()))
    if args.quick:
        show(_QUICK_NOTE)
    # Each case is shown as soon as it is measured: all of them together take long.
    for case in measure_cases(content, args.device):
        show(f"\n{make_timing_table(case, OURS)}", flush=True)
        content["results"].append(case)
    if args.json:
        print(json.dumps(content, indent=1))
    if args.output is None:
        return
    file = args.output / f"{get_file_name(content)}.json"
    write_json(file, content)
    show(f"\nresults: {file}")
    if args.what == "loss":
        picture = file.with_suffix(".png")
        make_scaling_figure(content).savefig(picture, dpi=110)
        show(f"picture: {picture}")


if __name__ == "__main__":
    sys.exit(main())
