"""Checks of what was measured of a training set."""

import numpy as np

from focal_det.imbalance.describe import describe_gain, describe_lost, to_share
from focal_det.imbalance.measure import TrainingSetReport
from focal_det.messages import shorten

from .findings import Findings

_LOST_SHARE = 0.1  # of the boxes unreached, from which it is a warning
_RARE = 20  # times fewer objects than the most frequent class


def add_findings(report: TrainingSetReport, findings: Findings) -> None:
    """What is wrong or could be better."""
    fit, counts, names = report.fit, report.weights.counts, report.weights.labels
    absent = [names[i] for i in np.flatnonzero(counts == 0)]
    if absent:
        advice = "They cannot be learnt, and evaluation leaves them out or counts them as missed."
        findings.add(
            "warning", "classes without objects in the training set", advice, shorten(absent)
        )
    rare = [
        f"{names[i]} ({counts[i]})"
        for i in report.weights.order
        if 0 < counts[i] * _RARE <= counts.max()
    ]
    if rare:
        advice = (
            "DATALOADER.SAMPLER_TRAIN RepeatFactorTrainingSampler shows their images more often; "
            "--write writes alpha per class."
        )
        place = f"{shorten(rare)}; the most frequent, {names[counts.argmax()]}, has {counts.max()}"
        findings.add("note", f"classes at least {_RARE} times rarer than another", advice, place)
    if report.fit.score < 1 - _LOST_SHARE:
        place = (
            f"{to_share(int((~fit.is_reached).sum()), len(fit.best_iou))}: {describe_lost(report)}"
        )
        advice = "They train on their best anchor only, or on none. " + _advise(report)
        findings.add(
            "warning", f"boxes that no anchor overlaps by {fit.iou_thresh:g}", advice, place
        )
    elif report.anchors:
        findings.add(
            "note", "anchors that could fit better", _advise(report), describe_gain(report)
        )
    lost = int((~fit.has_positive).sum())
    if lost:
        advice = "Other boxes have taken all their anchors: smaller or more anchors, or a larger image, would tell them apart."
        findings.add(
            "note", "boxes without a positive anchor", advice, to_share(lost, len(fit.has_positive))
        )


def _advise(report: TrainingSetReport) -> str:
    return (
        "--write FILE.yaml writes anchors that fit better."
        if report.anchors
        else "Larger images, or other anchors, reach them."
    )
