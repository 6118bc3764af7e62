"""Train and evaluate, with checks, a NaN guard and exact resume.

Takes the flags of Detectron2's train_net.py, and runs under torchrun as well. Exit codes: 0
finished; 1 stopped during the run (by the guard, a full disk, a dead process or an exception); 2
refused before the first iteration; 3 a bug before the run started; 128 + n stopped by signal n,
with a checkpoint after the running step (130 for Ctrl+C, 143 for SIGTERM).
"""

import argparse
import sys
from collections.abc import Sequence
from typing import Optional

from focal_det.check.run import run_checks
from focal_det.engine.launch import StoppedError, start_run
from focal_det.engine.run import RunPlan
from focal_det.report.findings import print_findings

from ._launcher import return_opts, submit
from ._program import REFUSED, run_program
from ._train_arguments import CHECKED_IMAGES, add_train_arguments

_EXAMPLE = "focal-det train --config-file digits/focal_retinanet_tiny.yaml OUTPUT_DIR output"


def main(argv: Optional[Sequence[str]] = None) -> int:
    # Not at the top, before focal_det's imports: their error says how to get Detectron2.
    from detectron2.engine import default_argument_parser

    theirs = default_argument_parser()
    return run_program(
        "train", __doc__, add_train_arguments, _run, argv, example=_EXAMPLE, parser=theirs
    )


def _run(args: argparse.Namespace) -> None:
    return_opts(args)
    if args.launcher == "slurm":
        submit(args)
        return
    try:
        start_run(args, _check)
    except StoppedError as error:
        raise SystemExit(str(error)) from None


def _check(plan: RunPlan) -> None:
    """Refuse to start a run that would stop or go wrong later; leave the findings for its log."""
    findings, _ = run_checks(plan.cfg, images=CHECKED_IMAGES, is_training=True)
    print_findings(findings)
    if findings.get("error"):
        message = "There are errors above, and nothing was trained. To train anyway: --no-check"
        print(message, file=sys.stderr)
        raise SystemExit(REFUSED)
    plan.findings = [f"{x.severity}: {x}" for x in findings]


if __name__ == "__main__":
    sys.exit(main())
