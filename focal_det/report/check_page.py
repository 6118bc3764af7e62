"""The page of `focal-det check`: the findings, and what was measured of the training set."""

from pathlib import Path
from typing import Optional

from focal_det.check.findings import Findings
from focal_det.imbalance.describe import describe
from focal_det.imbalance.measure import TrainingSetReport

from .findings import summarize
from .page import Page


def write_check_page(
    file: Path, title: str, findings: Findings, report: Optional[TrainingSetReport]
) -> None:
    """Write one HTML file.

    Args:
        title: such as the name of the config.
        report: None if the training set was not measured.

    Raises:
        OSError: it cannot be written.
    """
    page = Page(title)
    page.add_text(summarize(findings))
    page.add_table(
        ("severity", "finding", "places", "advice"),
        [(x.severity, x.title, "\n".join(x.shown), x.advice) for x in findings],
        [x.severity for x in findings],
    )
    if report:
        page.add_heading("Training set")
        page.add_text("\n".join(describe(report)))
    page.write(file)
