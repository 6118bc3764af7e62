"""Describes the imbalance and the first loss of each stage of a detector in words."""

import math
from collections.abc import Sequence
from typing import Optional

import numpy as np

from focal_det.modeling.settings import StageSettings
from focal_det.modeling.stage_losses import Prior

from .stages import Balance, StageReport, get_range_of_loss

_KNOWN_LATER = "how many are positive is known only in training"
_UNKNOWN = "not known before training"


def describe_stages(
    stages: Sequence[StageReport], counts: np.ndarray, loss_after: Optional[float]
) -> list[str]:
    """Human-readable lines; for a RetinaNet, only the loss, as `describe` covers its anchors.

    Args:
        stages: the first classifies the anchors.
        counts: (K,) objects of each class.
        loss_after: first loss of the first stage, with the suggested settings.
    """
    anchors, *others = stages
    lines = []
    if others:
        lines.append(f"{anchors.settings.title}: {describe_imbalance_of_anchors(anchors)}")
    loss = describe_first_loss(anchors, counts)
    if others and anchors.first_loss and not math.isnan(anchors.first_loss.background_share):
        loss += f", {to_part(anchors.first_loss.background_share)} of it from background"
    if loss and loss_after is not None:
        loss += f"; {loss_after:.3g} with the settings that --write suggests"
    lines += _name_loss(anchors.settings, loss)
    for stage in others:
        lines.append(f"{stage.settings.title}: {describe_sample(stage.settings)}; {_KNOWN_LATER}")
        lines += _name_loss(stage.settings, describe_first_loss(stage, counts))
    return lines


def _name_loss(stage: StageSettings, loss: str) -> list[str]:
    if not loss:
        return []
    name = f"expected {stage.loss_name} of the first step (all scores at the prior)"
    return [f"  {name}: {loss}"]


def describe_imbalance_of_anchors(report: StageReport) -> str:
    """Negatives for each positive, of all anchors and of those that count in the loss."""
    stage = report.settings
    if report.balance is None or report.balance.positives == 0:
        return f"no positive anchors; {describe_sample(stage)}"
    text = f"{to_ratio(report.balance)} negatives per positive; {describe_sample(stage)}"
    if report.sampled is not None and report.sampled.positives > 0:
        text += f", with {to_ratio(report.sampled)} negatives per positive"
    return text


def describe_sample(stage: StageSettings) -> str:
    """Which anchors or proposals of an image count in the loss of a stage."""
    if stage.sampling == "none":
        return f"all {stage.boxes} count"
    if stage.sampling == "hard":
        return f"the {stage.sample_size} {stage.boxes} with the largest losses count"
    negatives = stage.sample_size - stage.max_positives
    ratio = ""
    if stage.max_positives > 0:
        ratio = f" (1:{negatives / stage.max_positives:.3g})"
    return (
        f"random samples of {stage.sample_size} {stage.boxes}, at most {stage.max_positives} of "
        f"them positive{ratio}"
    )


def describe_first_loss(report: StageReport, counts: np.ndarray) -> str:
    """The expected loss; empty if it is not known.

    Args:
        counts: (K,) objects of each class.
    """
    if report.first_loss is not None:
        return f"about {report.first_loss.loss:.3g}"
    ends = get_range_of_loss(report, counts)
    if ends is None:
        return ""
    if np.isclose(*ends, rtol=1e-3):
        return f"about {ends[0]:.3g}"
    share = report.settings.max_positives / report.settings.sample_size
    return f"{ends[0]:.3g} without positives to {ends[1]:.3g} with {to_part(share)} of them"


def make_stage_table(
    stages: Sequence[StageReport], counts: np.ndarray
) -> tuple[Sequence[str], list[Sequence[str]]]:
    """Names of the columns, and a row for each stage.

    Args:
        counts: (K,) objects of each class.
    """
    head = ("stage", "loss", "divisor", "pi", "what counts", "negatives per positive", "first loss")
    rows: list[Sequence[str]] = []
    for report in stages:
        stage = report.settings
        loss = divisor = prior = _UNKNOWN
        if stage.loss is not None:
            loss = repr(stage.loss.cls_loss)
            divisor = type(stage.loss.normalizer).__name__
            prior = _describe_prior(stage.loss.prior_prob)
        balance = _UNKNOWN
        if report.balance is not None:
            balance = f"all {stage.boxes}: {to_ratio(report.balance)}"
        if report.sampled is not None:
            balance += f"\nsamples: {to_ratio(report.sampled)}"
        first = f"{stage.loss_name}: {describe_first_loss(report, counts) or _UNKNOWN}"
        rows.append((stage.title, loss, divisor, prior, describe_sample(stage), balance, first))
    return head, rows


def _describe_prior(prior: Prior) -> str:
    if not isinstance(prior, (int, float)):
        return "per class"
    return f"{prior:g}" if prior else "bias of 0"


def to_ratio(balance: Balance) -> str:
    """Negatives for each positive, to three digits or whole."""
    if balance.positives == 0:
        return "no positives"
    return to_number(balance.negatives_per_positive)


def to_number(value: float) -> str:
    """Three digits or whole."""
    # Three digits of large numbers would be in scientific notation.
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def to_part(share: float) -> str:
    """A share in percent, to three digits."""
    return f"{100 * share:.3g} %"
