"""Check data, config, model and weights before training: what to correct, and where.

Exit codes: 0 no errors or warnings, 1 warnings, 2 errors or an invalid command, 3 a bug in
focal_det, 130 interrupted. Findings: docs/check.md.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from focal_det.check.findings import Findings
from focal_det.check.fix import write_fixed
from focal_det.check.rules import INTERRUPTED_CHECK
from focal_det.check.run import load_checked_config, run_checks
from focal_det.config import find_config_file
from focal_det.imbalance.config_file import check_suggestion_file, write_suggestion
from focal_det.report.check_page import write_check_page
from focal_det.report.findings import print_results, to_json

from ._arguments import add_config_arguments, add_json_argument, add_output_argument, at_least
from ._program import run_program

_EXAMPLE = "focal-det check --config-file digits/focal_retinanet_tiny.yaml --output check.html"


def main(argv: Optional[Sequence[str]] = None) -> int:
    return run_program("check", __doc__, _add_arguments, _run, argv, example=_EXAMPLE)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    add_output_argument(parser, "page of findings and figures", required=False, metavar="FILE.html")
    what = "write better anchors, and the advised loss or else alpha and pi (without errors only)"
    option("--write", type=Path, metavar="FILE.yaml", help=what)
    option("--fix", type=Path, metavar="OUT.json", help="correct a COCO JSON; needs --dataset")
    option("--dataset", metavar="NAME", help="check this data set only, in place of the config's")
    what = "decode N images of each data set; measure anchors on at most N (default: all; 200)"
    option("--images", type=at_least(0), default=0, metavar="N", help=what)
    what = "ids of findings to leave out; put another option between them and KEY VALUE"
    option("--ignore", nargs="+", default=[], metavar="ID", help=what)
    option("--unsafe-yaml", action="store_true", help="let the config run code (!!python/...)")
    add_json_argument(parser)
    add_config_arguments(parser)


def _run(args: argparse.Namespace) -> int:
    if args.fix and not args.dataset:
        raise ValueError("--fix needs --dataset, the data set whose JSON is to be corrected")
    file = find_config_file(args.config_file)
    if args.write:
        check_suggestion_file(args.write, file)
    cfg = load_checked_config(file, args.opts, args.dataset, unsafe_yaml=args.unsafe_yaml)
    findings = Findings()
    given = {"images": args.images, "dataset": args.dataset, "ignore": args.ignore}
    try:
        _, report = run_checks(cfg, **given, suggest=True, findings=findings)
    except KeyboardInterrupt:
        if args.output:
            findings.add(INTERRUPTED_CHECK, file)
            write_check_page(args.output, file, findings, None)
            print(f"\npage:    {args.output}", file=sys.stderr)
        raise
    if report and args.write:
        write_suggestion(report, cfg, file, args.opts, args.write)
    if args.output:
        write_check_page(args.output, file, findings, report)
    if args.json:
        print(json.dumps(to_json(findings, report), indent=1))
    else:
        print_results(findings, report, config=args.write, page=args.output)
    if args.fix:
        print(write_fixed(args.dataset, args.fix), file=sys.stderr)
    return findings.exit_code


if __name__ == "__main__":
    sys.exit(main())
