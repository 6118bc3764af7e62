"""Write a page about a finished run: metrics, curves, detections."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from focal_det.experiments.records import make_record
from focal_det.files import write_json
from focal_det.report.run_page import make_figures, make_run_page, read_run

from ._arguments import add_output_argument, at_least
from ._program import run_program

_EXAMPLE = "focal-det report output/tiny --score-thresh 0.3"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; see `--help`."""
    return run_program("report", __doc__, _add_arguments, _run, argv, example=_EXAMPLE)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="OUTPUT_DIR of a finished run that was evaluated with COCO metrics; "
        "its pictures are written there as well",
    )
    what = "page to write (default: RUN/report.html)"
    add_output_argument(parser, what, metavar="FILE.html", required=False)
    what = "number of images in the grid; 0 for all (default: %(default)s)"
    parser.add_argument("--images", type=at_least(0), default=12, help=what)
    what = "lowest score to draw (default: %(default)s)"
    parser.add_argument("--score-thresh", type=float, default=0.4, help=what)
    what = "another finished run on the same data set, whose detections are drawn beside"
    parser.add_argument("--beside", type=Path, metavar="RUN", help=what)
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="also write a JSON record; it stores the current commit, "
        "so write it before you edit the code",
    )
    what = "the command that made the run, with its --config-file, for the page and the record"
    parser.add_argument("--command", metavar="TEXT", help=what)


def _run(args: argparse.Namespace) -> None:
    if args.record and not args.command:
        raise ValueError("--record needs --command, the command that made the run")
    if args.command and "--config-file" not in args.command:
        raise ValueError("--command must be the whole command, with its --config-file")
    run = read_run(args.run)
    # Everything is read first, so that nothing is written if the results do not fit the run.
    other = read_run(args.beside) if args.beside else None
    drawn = {"num_images": args.images, "score_thresh": args.score_thresh}
    figures = make_figures(run, **drawn, other=other)
    record = None
    if args.command:
        record = make_record(args.run, args.command, run.dataset)
    for name, figure in figures.items():
        figure.savefig(args.run / f"{name}.png")
    page_file = args.output or args.run / "report.html"
    make_run_page(run, figures, record=record).write(page_file)
    if figures["detections"].get_suptitle():
        print(figures["detections"].get_suptitle())
    if args.record:
        write_json(args.record, record)
        print(f"record: {args.record}")
    print(f"page: {page_file.resolve()}")
    print(f"pictures, metrics.json, TensorBoard events and checkpoints: {args.run.resolve()}")


if __name__ == "__main__":
    sys.exit(main())
