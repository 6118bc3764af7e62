"""Alpha and pi per class of a config's training set, and how they were found, in words."""

import logging
from dataclasses import dataclass
from typing import Optional

import numpy as np
from detectron2.config import CfgNode

from focal_det.data.catalog import sample_evenly
from focal_det.host import LOGGER_NAME
from focal_det.modeling.settings import ClassSettings, read_class_settings

from .advice import make_advice
from .anchors import AnchorFit, build_anchor_setup, measure_anchors
from .class_weights import (
    ClassWeights,
    check_alpha_args,
    compute_class_weights,
    count_objects,
    round_weight,
)
from .describe import describe_imbalance, describe_size
from .read import get_class_names, get_middle_size, read_training_set
from .stages import count_balance

_MAX_ROWS = 40  # of a shortened table


@dataclass(frozen=True)
class WeightOptions:
    """How alphas are computed; see `compute_class_alphas`."""

    method: str
    beta: float
    max_alpha: float


@dataclass(frozen=True)
class WeightsReport:
    """What was measured of a training set.

    Attributes:
        datasets: names of the training sets, joined.
        weights: objects, alpha and pi per class.
        settings: where the config has alpha and pi.
        options: how the alphas were computed.
        num_images: of the training sets.
        num_labelled: images whose positives were counted for pi.
        size: shorter side of the images in training, in pixels; 0 if they are not resized.
        fit: labels of the anchors of the labelled images; None if anchors have no classes, as in
            two-stage detectors.
    """

    datasets: str
    weights: ClassWeights
    settings: ClassSettings
    options: WeightOptions
    num_images: int
    num_labelled: int
    size: int
    fit: Optional[AnchorFit]

    @property
    def title(self) -> str:
        """The training set in one line."""
        num_objects = self.weights.counts.sum()
        balance = describe_imbalance(self.weights)
        return f"{self.datasets}: {self.num_images} images, {num_objects} objects, {balance}"


def measure_class_weights(cfg: CfgNode, options: WeightOptions, num_images: int) -> WeightsReport:
    """Count objects and positive anchors, and compute alpha and pi per class.

    Args:
        num_images: images whose anchors are labelled, at even distances; 0 for all.

    Raises:
        ValueError: a detector that takes neither, an option out of range, or a training set that
            cannot be counted.
    """
    settings = read_class_settings(cfg)
    # Before labelling, which takes minutes.
    _check_options(settings, options)
    records = read_training_set(cfg)
    class_names = get_class_names(cfg)
    sample = []
    fit = None
    if settings.total_prior is None:
        sample = sample_evenly(records, num_images)
        fit = measure_anchors(sample, build_anchor_setup(cfg), progress="positives per anchor")
    weights = compute_class_weights(
        class_names,
        count_objects(records, len(class_names)),
        settings,
        alpha=settings.alpha,
        fit=fit,
        method=options.method,
        max_alpha=options.max_alpha,
        beta=options.beta,
    )
    return WeightsReport(
        datasets=" + ".join(cfg.DATASETS.TRAIN),
        weights=weights,
        settings=settings,
        options=options,
        num_images=len(records),
        num_labelled=len(sample),
        size=get_middle_size(cfg),
        fit=fit,
    )


def describe_advice(cfg: CfgNode, report: WeightsReport) -> list[str]:
    """What comparisons say of loss and sampling; `focal-det check --write` sets it, not this."""
    if report.fit is None:
        return []
    advice = make_advice(cfg, count_balance(report.fit), report.weights.counts)
    return [f"{x.topic}: {line}" for x in advice for line in x.lines]


def _check_options(settings: ClassSettings, options: WeightOptions) -> None:
    if not settings.alpha_key and not settings.prior_key:
        raise ValueError(f"no alpha and no pi to write: {'; '.join(settings.missing)}")
    # The options do not matter for a loss without alphas.
    if settings.alpha_key:
        limits = (options.max_alpha, options.beta)
        mean_key = settings.scalar_alpha_key
        check_alpha_args(options.method, settings.alpha, *limits, mean_key=mean_key)


def describe_method(report: WeightsReport) -> list[str]:
    """How alpha and pi were computed, in a line for each that the detector takes."""
    options = report.options
    lines = []
    if report.weights.alphas:
        beta = ""
        if options.method == "effective":
            beta = f", beta {options.beta:g}"
        lines.append(
            f"alpha: {options.method}{beta}; mean over the objects {report.weights.scalar_alpha:g} "
            f"({report.settings.scalar_alpha_key}), none above {options.max_alpha:g}"
        )
    if report.fit is not None:
        side = describe_size(report.size)
        lines.append(
            f"pi: positives per anchor; {report.num_labelled} images, {side}, "
            f"{report.fit.num_anchors / report.num_labelled:.0f} anchors per image"
        )
    elif report.weights.priors is not None:
        lines.append(
            f"pi: in proportion to the objects, with the sum {report.settings.total_prior:.3g} of "
            f"PRIOR_PROB {report.weights.scalar_prior:g}; how many proposals are positive is known "
            "only in training"
        )
    return lines


def make_table(weights: ClassWeights) -> list[str]:
    """A line of column names, then one per class by falling number of objects."""
    # The column's own name has five letters.
    width = max(5, *(len(x) for x in weights.labels))
    num_objects = weights.counts.sum()
    columns = [("alpha", 8, weights.chosen_alphas), ("pi", 10, weights.priors)]
    known = [(name, size, values) for name, size, values in columns if values is not None]
    names = "".join(f"  {name:>{size}}" for name, size, _ in known)
    lines = [f"{'id':>4}  {'class':<{width}}  {'objects':>8}  {'share':>8}{names}"]
    for i in weights.order:
        share = f"{100 * weights.counts[i] / num_objects:.2f} %"
        numbers = "".join(f"  {round_weight(values[i]):>{size}}" for _, size, values in known)
        lines.append(
            f"{i:>4}  {weights.labels[i]:<{width}}  {weights.counts[i]:>8}  {share:>8}{numbers}"
        )
    return lines


def shorten_table(table: list[str]) -> list[str]:
    """The most and the least frequent classes of a table too long for a terminal."""
    if len(table) <= _MAX_ROWS + 1:
        return table
    # The first line has the column names.
    half = _MAX_ROWS // 2
    num_left_out = len(table) - 1 - 2 * half
    note = f"      ... {num_left_out} more, see the written config"
    return [*table[: half + 1], note, *table[-half:]]


def warn_unmeasured(cfg: CfgNode, report: WeightsReport) -> None:
    """Warn of classes whose numbers are not measured, and of a sampler that changes the counts."""
    weights = report.weights
    _warn_zeros(weights, weights.counts, "without objects, weighted like one with a single object")
    if report.fit is not None:
        prior = f"with pi = 1 / {report.fit.num_anchors}"
        _warn_zeros(
            weights,
            report.fit.positives,
            f"without a positive anchor in the images looked at (--images), {prior}",
        )
    # With alphas from these counts, rare classes would be favoured twice.
    if cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        logging.getLogger(LOGGER_NAME).warning(
            "DATALOADER.SAMPLER_TRAIN repeats images of rare classes; the counts are those of the "
            "data set, without repeats"
        )


def _warn_zeros(weights: ClassWeights, values: np.ndarray, what: str) -> None:
    """Name the classes whose (K,) value is 0."""
    names = [name for name, value in zip(weights.labels, values) if value == 0]
    if names:
        logging.getLogger(LOGGER_NAME).warning(f"Classes {what}: {', '.join(names)}")
