"""Check of the training set: its classes, and how well the anchors fit its boxes."""

import numpy as np

from focal_det.imbalance.advice import RARE_RATIO
from focal_det.imbalance.describe import describe_gain, describe_lost, to_percent, to_share
from focal_det.imbalance.measure import TrainingSetReport, measure_training_set
from focal_det.messages import shorten
from focal_det.modeling.settings import read_anchors

from .findings import Findings
from .plan import Plan
from .rules import (
    ABSENT_CLASS,
    ANCHORS_NOT_MEASURED,
    BACKGROUND_LOSS,
    BETTER_ANCHORS,
    NO_POSITIVE_ANCHOR,
    RARE_CLASS,
    UNREACHED_BOXES,
)
from .stages import Stage, register_check

LABELLED_IMAGES = 200  # in which anchors are labelled; fewer if fewer are decoded
_LOST_SHARE = 0.1  # of the boxes; if anchors miss more of them, that is a warning
_BACKGROUND_SHARE = 0.9  # of the first loss; above it, the loss says little about objects


@register_check(Stage.MODEL)
def check_architecture(plan: Plan, findings: Findings) -> None:
    """Say that anchors are not measured, for detectors where they are not."""
    if read_anchors(plan.cfg) is None:
        place = f"MODEL.META_ARCHITECTURE {plan.cfg.MODEL.META_ARCHITECTURE}"
        findings.add(ANCHORS_NOT_MEASURED, place)


@register_check(Stage.TRAINING_SET)
def check_training_set(plan: Plan, findings: Findings) -> None:
    """Measure the training set of a detector with anchors; leaves the report in the plan."""
    if read_anchors(plan.cfg) is None:
        return
    # More images hardly change the measures, and take minutes.
    num_images = min(plan.num_decoded or LABELLED_IMAGES, LABELLED_IMAGES)
    plan.report = measure_training_set(plan.cfg, plan.get_records, num_images, suggest=plan.suggest)
    _check_classes(plan.report, findings)
    _check_anchors(plan.report, findings)
    _check_first_loss(plan.report, findings)


def _check_classes(report: TrainingSetReport, findings: Findings) -> None:
    counts = report.weights.counts
    names = report.weights.labels
    absent = [names[i] for i in np.flatnonzero(counts == 0)]
    if absent:
        findings.add(ABSENT_CLASS, shorten(absent))
    rare = [
        f"{names[i]} ({counts[i]})"
        for i in report.weights.order
        if 0 < counts[i] * RARE_RATIO <= counts.max()
    ]
    if rare:
        most = f"the most frequent, {names[counts.argmax()]}, has {counts.max()}"
        findings.add(RARE_CLASS, f"{shorten(rare)}; {most}", ratio=RARE_RATIO)


def _check_anchors(report: TrainingSetReport, findings: Findings) -> None:
    fit = report.fit
    if fit.has_iou_thresh and fit.score < 1 - _LOST_SHARE:
        share = to_share(int((~fit.is_reached).sum()), len(fit.best_iou))
        place = f"{share}: {describe_lost(report)}"
        findings.add(UNREACHED_BOXES, place, iou_thresh=f"{fit.iou_thresh:g}")
    elif report.anchors:
        findings.add(BETTER_ANCHORS, describe_gain(report))
    num_lost = int((~fit.has_positive).sum())
    if num_lost:
        findings.add(NO_POSITIVE_ANCHOR, to_share(num_lost, len(fit.has_positive)))


def _check_first_loss(report: TrainingSetReport, findings: Findings) -> None:
    """Find an RPN without sampling in which background dominates the first loss."""
    anchors = report.stages[0]
    stage = anchors.settings
    # Samples have as many objects as background, and a RetinaNet has a prior by default.
    if not stage.key or stage.sampling != "none":
        return
    first = anchors.first_loss
    if first is None or stage.loss is None or not first.background_share > _BACKGROUND_SHARE:
        return
    place = (
        f"{to_percent(first.background_share)} of {stage.loss_name} {first.loss:.3g}, with "
        f"{stage.key}.PRIOR_PROB {stage.loss.prior_prob} and SAMPLING none"
    )
    share = report.fit.positives.sum() / report.fit.num_anchors
    findings.add(BACKGROUND_LOSS, place, key=stage.key, prior=f"{share:.1g}")
