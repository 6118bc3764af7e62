"""Findings of the checks as text, and as JSON."""

import shutil
import sys
import textwrap
from pathlib import Path
from typing import Any, Optional

from focal_det.check.findings import Findings
from focal_det.check.rules import FIX_NOTE, SEVERITIES
from focal_det.imbalance.describe import describe
from focal_det.imbalance.measure import TrainingSetReport
from focal_det.imbalance.measure import to_json as report_to_json

_COLORS = {"error": "\033[31m", "warning": "\033[33m", "note": "\033[36m"}
_END = "\033[0m"
_INDENT = " " * 8  # the width of the severity column


def print_findings(findings: Findings) -> None:
    """Print the findings, errors first, and how many there are of each severity.

    On a terminal each is a paragraph with colours, elsewhere a line.
    """
    # Paths stay whole, so that they can be copied.
    wrapper = textwrap.TextWrapper(
        shutil.get_terminal_size().columns,
        initial_indent=_INDENT,
        subsequent_indent=_INDENT + "  ",
        break_on_hyphens=False,
        break_long_words=False,
    )
    for finding in findings:
        severity = f"{finding.severity:<{len(_INDENT)}}"
        # One line each, for grep and logs.
        if not sys.stdout.isatty():
            print(f"{severity}{finding}")
            continue
        print(f"{_COLORS[finding.severity]}{severity}{_END}{finding.title}")
        for line in [*(f"- {x}" for x in finding.shown), finding.advice]:
            print(wrapper.fill(line))
    print(summarize(findings))
    if any(x.rule.is_fixable for x in findings):
        print(FIX_NOTE)


def summarize(findings: Findings) -> str:
    """How many there are of each severity, such as "no errors, 1 warning, 2 notes"."""
    parts = []
    for severity in SEVERITIES:
        number = len(findings.get(severity))
        ending = "" if number == 1 else "s"
        parts.append(f"{number or 'no'} {severity}{ending}")
    return ", ".join(parts)


def print_results(
    findings: Findings,
    report: Optional[TrainingSetReport],
    *,
    config: Optional[Path] = None,
    page: Optional[Path] = None,
) -> None:
    """Print all results of a check.

    Args:
        report: measures of the training set; None if it was not measured.
        config: file for the suggested config, if asked for; written only if there is a report.
        page: file of the page with the same results, if there is one.
    """
    if report:
        print("\n".join(describe(report)), end="\n\n")
    print_findings(findings)
    if report is None and findings.get("error"):
        print("The training set is measured once there are no errors.")
    if config and report:
        print(f"config:  {config}")
    elif config:
        print(f"{config} is not written, as the training set was not measured.")
    if page:
        print(f"page:    {page}")


def to_json(findings: Findings, report: Optional[TrainingSetReport]) -> dict[str, Any]:
    """All results of a check, for a program."""
    return {
        "findings": [x.to_json() for x in findings],
        "training_set": report_to_json(report) if report else None,
    }
