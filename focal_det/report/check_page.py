"""The page of `focal-det check`: the findings, and the training set in words and pictures."""

from pathlib import Path
from typing import Optional

from focal_det.check.findings import Findings
from focal_det.check.rules import FIX_NOTE
from focal_det.imbalance.class_weights import ClassWeights
from focal_det.imbalance.describe import describe
from focal_det.imbalance.describe_stages import make_stage_table
from focal_det.imbalance.measure import TrainingSetReport

from .anchors import make_anchor_figure
from .class_weights import make_class_weights_figure
from .detections import make_ground_truth_figure
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
    page = Page(f"Check of {title}")
    page.add_text(summarize(findings))
    page.add_table(
        ("severity", "finding", "places", "advice"),
        [(x.severity, x.title, "\n".join(x.shown), x.advice) for x in findings],
        [x.severity for x in findings],
    )
    if any(x.rule.is_fixable for x in findings):
        page.add_text(FIX_NOTE)
    if report:
        _add_training_set(page, report)
    page.write(file)


def _add_training_set(page: Page, report: TrainingSetReport) -> None:
    page.add_heading("Training set")
    page.add_text("\n".join(describe(report)))
    # For a detector with one stage, the table would only repeat the text.
    if len(report.stages) > 1:
        page.add_table(*make_stage_table(report.stages, report.weights.counts))
    images = make_ground_truth_figure(report.sample, report.class_names)
    page.add_figure(images, "images with their boxes")
    # Both in one figure, so that one sees which IoU the suggested anchors reach.
    fits = {"now": report.fit}
    if report.fit_after:
        fits["suggested"] = report.fit_after
    anchors = make_anchor_figure(fits, report.weights.labels, report.level_names)
    page.add_figure(anchors, "boxes that the anchors reach, by size, IoU and class")
    _add_classes(page, report.weights)


def _add_classes(page: Page, weights: ClassWeights) -> None:
    columns = {"alpha": weights.chosen_alphas, "pi": weights.priors}
    names = " and ".join(name for name, values in columns.items() if values is not None)
    title = "objects of each class"
    caption = title
    if names:
        title = f"objects, {names} of each class"
        caption += f", and {names} chosen from these counts"
    page.add_figure(make_class_weights_figure(weights, title), caption)
