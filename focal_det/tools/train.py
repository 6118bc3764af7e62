"""Train and evaluate, with checks, a NaN guard and exact resume.

Takes the flags of Detectron2's train_net.py. Exit codes: 0 finished; 1 stopped during the run (by
the guard, a full disk or an exception); 2 refused before the first iteration; 3 a bug before the
run started; 130 interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Optional

from focal_det.check.run import run_checks
from focal_det.engine.launch import StoppedError, start_run
from focal_det.engine.run import RunPlan
from focal_det.report.findings import print_findings

from ._program import REFUSED, run_program

_EXAMPLE = "focal-det train --config-file digits/focal_retinanet_tiny.yaml OUTPUT_DIR output"
_CHECKED_IMAGES = 200  # of each data set: decoding all of a large one takes minutes
# Of Detectron2's own arguments, those whose help is not true of this program.
_HELP = {
    "config_file": "required: a .yaml file, or the name of a config that ships with focal_det",
    "resume": "continue the run in OUTPUT_DIR; refused if settings changed (see --allow-changes)",
    "eval_only": "evaluate the last checkpoint in OUTPUT_DIR, or MODEL.WEIGHTS, and do not train",
    "opts": "changes to the config as KEY VALUE, last",
}


def main(argv: Optional[Sequence[str]] = None) -> int:
    # Not at the top: without Detectron2, the imports there say how to get it.
    from detectron2.engine import default_argument_parser

    theirs = default_argument_parser()
    return run_program(
        "train", __doc__, _add_arguments, _run, argv, example=_EXAMPLE, parser=theirs
    )


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    flags = {
        "--no-check": f"skip `focal-det check`, here on {_CHECKED_IMAGES} images of each data set",
        "--overwrite": "remove the run that OUTPUT_DIR holds, and start anew",
        "--unsafe-yaml": "let the config run code (!!python/...) when it is read",
    }
    for flag, text in flags.items():
        parser.add_argument(flag, action="store_true", help=text)
    parser.add_argument(
        "--allow-changes",
        default="",
        metavar="KEY,...",
        help="let --resume continue although these keys, or all below them, have changed",
    )
    parser.add_argument(
        "--num-processes",
        type=int,
        default=0,
        help="processes on this machine, with --num-gpus 0 (default: one for each GPU)",
    )
    # Detectron2's port is the same for every run of a user.
    parser.set_defaults(dist_url="auto")
    # argparse has no public way to change an argument of another library's parser.
    for action in parser._actions:
        action.help = _HELP.get(action.dest, action.help)


def _run(args: argparse.Namespace) -> None:
    try:
        start_run(args, _check)
    except StoppedError as error:
        raise SystemExit(str(error)) from None


def _check(plan: RunPlan) -> None:
    """Refuse to start a run that would stop or go wrong later; leave the findings for its log."""
    findings, _ = run_checks(plan.cfg, images=_CHECKED_IMAGES, is_training=True)
    print_findings(findings)
    if findings.get("error"):
        message = "There are errors above, and nothing was trained. To train anyway: --no-check"
        print(message, file=sys.stderr)
        raise SystemExit(REFUSED)
    plan.findings = [f"{x.severity}: {x}" for x in findings]


if __name__ == "__main__":
    sys.exit(main())
