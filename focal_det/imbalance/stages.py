"""Negatives and positives of each stage of a detector, before and after sampling.

How many proposals of an RPN will be positive is known only in training, and nothing here guesses
it.

Shapes: N images, K classes of a stage.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np

from focal_det.modeling.settings import StageSettings

from .anchors import AnchorFit, AnchorSetup
from .first_loss import FirstLoss, compute_first_loss, compute_loss_per_box


@dataclass(frozen=True)
class Balance:
    """Positives and negatives of some images together."""

    positives: int
    negatives: int

    @property
    def negatives_per_positive(self) -> float:
        """Infinite without positives."""
        if self.positives == 0:
            return float("inf")
        return self.negatives / self.positives


@dataclass(frozen=True)
class StageReport:
    """What a training set asks of a stage.

    Attributes:
        settings: of the stage.
        balance: of all anchors of the measured images; None for proposals, of which nothing is
            known before training.
        sampled: of the random samples of the same images; None for proposals, or if the sample is
            not random.
        first_loss: None for proposals, or if it is not known.
        loss_per_box: (K + 1,) for proposals, see `compute_loss_per_box`.
    """

    settings: StageSettings
    balance: Optional[Balance] = None
    sampled: Optional[Balance] = None
    first_loss: Optional[FirstLoss] = None
    loss_per_box: Optional[np.ndarray] = None


def measure_stages(
    stages: Sequence[StageSettings],
    fit: AnchorFit,
    batch: Sequence[dict[str, Any]],
    setup: AnchorSetup,
) -> list[StageReport]:
    """Measure the stages of a detector.

    Args:
        stages: the first classifies the anchors.
        fit: of the anchors.
        batch: dataset dicts of a first step.
    """
    anchors, *others = stages
    report = StageReport(
        anchors,
        balance=count_balance(fit),
        sampled=_measure_sample(fit, anchors),
        first_loss=compute_first_loss(anchors, batch, setup),
    )
    return [report, *(StageReport(x, loss_per_box=compute_loss_per_box(x)) for x in others)]


def _measure_sample(fit: AnchorFit, stage: StageSettings) -> Optional[Balance]:
    """What Detectron2's `subsample_labels` keeps of each image."""
    if stage.sampling != "random":
        return None
    positives = np.minimum(fit.positives_per_image, stage.max_positives)
    # Negatives fill the sample up.
    negatives = np.minimum(fit.negatives_per_image, stage.sample_size - positives)
    return Balance(int(positives.sum()), int(negatives.sum()))


def count_balance(fit: AnchorFit) -> Balance:
    """Positives and negatives of all labelled anchors."""
    return Balance(int(fit.positives_per_image.sum()), int(fit.negatives_per_image.sum()))


def get_range_of_loss(report: StageReport, counts: np.ndarray) -> Optional[tuple[float, float]]:
    """First loss of a random sample of proposals: without positives, and with the most it may have.

    Args:
        counts: (K,) objects, by which the classes of positives are weighted.

    Returns:
        None if it is not known.
    """
    stage = report.settings
    if report.loss_per_box is None or stage.sampling != "random":
        return None
    background = float(report.loss_per_box[-1])
    of_objects = float(np.average(report.loss_per_box[:-1], weights=counts))
    share = stage.max_positives / stage.sample_size
    return background, (1 - share) * background + share * of_objects


def to_json(report: StageReport, counts: np.ndarray) -> dict[str, Any]:
    """The measures as figures for a program; None where they are not known.

    Args:
        counts: (K,) objects.
    """
    stage = report.settings
    figures = {
        "stage": stage.title,
        "boxes": stage.boxes,
        "sampling": stage.sampling,
        "sample_size": stage.sample_size,
        "max_positives": stage.max_positives,
        "negatives_per_positive": _get_ratio(report.balance),
        "negatives_per_positive_of_sample": _get_ratio(report.sampled),
        f"initial_{stage.loss_name}": None,
        "background_share": None,
        f"initial_{stage.loss_name}_range": get_range_of_loss(report, counts),
    }
    if report.first_loss is not None:
        share = report.first_loss.background_share
        figures[f"initial_{stage.loss_name}"] = report.first_loss.loss
        figures["background_share"] = share if math.isfinite(share) else None
    return figures


def _get_ratio(balance: Optional[Balance]) -> Optional[float]:
    # JSON has no infinity.
    if balance is None or balance.positives == 0:
        return None
    return balance.negatives_per_positive
