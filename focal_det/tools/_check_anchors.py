"""What a training set asks of a detector: class balance, anchors that reach the boxes, loss at the start; and better numbers."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import focal_det.host  # noqa: F401  (first: says how to get Detectron2)

import numpy as np
from detectron2.config import CfgNode

from focal_det.analysis.anchor_fit import (
    AnchorFit,
    Anchors,
    AnchorSetup,
    draw_anchor_fit,
    get_objects,
    measure_anchors,
)
from focal_det.analysis.anchor_suggestion import MIN_GAIN, suggest_anchors
from focal_det.analysis.class_weights import (
    WEIGHT_METHODS,
    ClassWeights,
    compute_class_alphas,
    compute_class_priors,
    count_objects,
)
from focal_det.data.catalog import sample_evenly
from focal_det.data.findings import Findings, shorten
from focal_det.tools._expected_loss import compute_expected_loss
from focal_det.tools._training_set import (
    GetRecords,
    build_anchor_setup,
    get_class_names,
    get_middle_size,
    read_training_set,
    write_config,
)
from focal_det.tools.weights import describe_imbalance, get_weight_values

_MAX_BOXES = 10_000  # whose anchors are labelled, unless a single image has more
_MAX_ALPHA = 0.95
_LOST_SHARE = 0.1  # of the boxes unreached, from which it is a warning
_MAX_CLASSES = 12  # whose objects are told in words
_RARE = 20  # times fewer objects than the most frequent class
_FIRST_LINE = "Anchors, pi and alpha for"


@dataclass(frozen=True)
class TrainingSetReport:
    """What was measured of a training set.

    Attributes:
        sample: the images whose anchors were labelled.
        initial_loss: `loss_cls` of the first step.
        anchors, fit_after: those of the suggestion, if other anchors are worth it.
        loss_after: `loss_cls` of the first step with all that is suggested, pi and alpha per class too.
    """

    class_names: Sequence[str]
    level_names: Sequence[str]
    weights: ClassWeights
    num_images: int
    sample: list[dict[str, Any]]
    size: int
    fit: AnchorFit
    initial_loss: float
    anchors: Optional[Anchors] = None
    fit_after: Optional[AnchorFit] = None
    loss_after: Optional[float] = None


def measure_training_set(
    cfg: CfgNode, get_records: GetRecords, num_images: int, *, suggest: bool
) -> TrainingSetReport:
    """Count and label a training set.

    Args:
        num_images: whose anchors are labelled, at even distances; 0 for all. Fewer if they have very many boxes.
        suggest: whether to look for better anchors.
    """
    records, class_names = read_training_set(cfg, get_records), get_class_names(cfg)
    counts, sample = count_objects(records, len(class_names)), sample_evenly(records, num_images)
    if not any(map(get_objects, sample)):  # few images have any
        sample = sample_evenly([x for x in records if get_objects(x)], num_images)
    num_boxes = sum(len(get_objects(x)) for x in sample)
    if num_boxes > _MAX_BOXES:
        sample = sample_evenly(sample, max(1, len(sample) * _MAX_BOXES // num_boxes))
    setup = build_anchor_setup(cfg)
    fit = measure_anchors(sample, setup, progress="anchors" if suggest else "")
    anchors = _suggest(cfg, sample, setup) if suggest else None
    fit_after = None
    if anchors:
        fit_after = measure_anchors(sample, setup.with_anchors(anchors), progress="better anchors")
    if (
        fit_after and fit_after.score < fit.score + MIN_GAIN
    ):  # better on the images that it was found on only
        anchors = fit_after = None
    chosen = fit_after or fit
    alpha = cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA
    mean = alpha if 0 < alpha <= _MAX_ALPHA else 0.25
    alphas = {
        x: compute_class_alphas(counts, method=x, mean=mean, max_alpha=_MAX_ALPHA)
        for x in WEIGHT_METHODS
    }
    priors = compute_class_priors(chosen.positives, chosen.num_anchors)
    weights = ClassWeights(
        class_names, counts, alphas, "sqrt", priors, mean, cfg.MODEL.RETINANET.PRIOR_PROB
    )
    batch = list(itertools.islice(itertools.cycle(sample), cfg.SOLVER.IMS_PER_BATCH))
    loss = compute_expected_loss(cfg, batch, setup)
    loss_after = (
        _compute_loss_after(cfg, weights, batch, setup.with_anchors(anchors) if anchors else setup)
        if suggest
        else None
    )
    levels, size = cfg.MODEL.RETINANET.IN_FEATURES, get_middle_size(cfg)
    return TrainingSetReport(
        class_names,
        levels,
        weights,
        len(records),
        sample,
        size,
        fit,
        loss,
        anchors,
        fit_after,
        loss_after,
    )


def _compute_loss_after(
    cfg: CfgNode, weights: ClassWeights, batch: Sequence[dict[str, Any]], setup: AnchorSetup
) -> float:
    """`loss_cls` of the first step with pi and alpha per class."""
    cfg = cfg.clone()
    cfg.merge_from_list(
        [x for pair in get_weight_values(weights, _MAX_ALPHA).items() for x in pair]
    )
    return compute_expected_loss(cfg, batch, setup)


def _suggest(cfg: CfgNode, sample: list[dict[str, Any]], setup: AnchorSetup) -> Optional[Anchors]:
    node, levels = cfg.MODEL.ANCHOR_GENERATOR, cfg.MODEL.RETINANET.IN_FEATURES
    if node.NAME != "DefaultAnchorGenerator" or len(node.ASPECT_RATIOS) != 1:
        return None
    sizes = list(node.SIZES) * (len(levels) if len(node.SIZES) == 1 else 1)
    may_add_level = (
        cfg.MODEL.BACKBONE.NAME == "build_retinanet_resnet_fpn_backbone" and levels[0] == "p3"
    )
    anchors = Anchors(sizes, list(node.ASPECT_RATIOS[0]), setup.strides)
    return suggest_anchors(sample, setup, anchors, may_add_level=may_add_level)


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
            f"{_share(int((~fit.is_reached).sum()), len(fit.best_iou))}: {_describe_lost(report)}"
        )
        advice = "They train on their best anchor only, or on none. " + _advise(report)
        findings.add(
            "warning", f"boxes that no anchor overlaps by {fit.iou_thresh:g}", advice, place
        )
    elif report.anchors:
        findings.add(
            "note", "anchors that could fit better", _advise(report), _describe_gain(report)
        )
    lost = int((~fit.has_positive).sum())
    if lost:
        advice = "Other boxes have taken all their anchors: smaller or more anchors, or a larger image, would tell them apart."
        findings.add(
            "note", "boxes without a positive anchor", advice, _share(lost, len(fit.has_positive))
        )


def describe(report: TrainingSetReport) -> list[str]:
    """The measures, as lines for a person."""
    fit, num = report.fit, len(report.sample)
    per_image, num_boxes = fit.positives_per_image, len(fit.best_iou)
    levels = ", ".join(
        f"{k} {v / num:.3g}" for k, v in zip(report.level_names, fit.positives_per_level)
    )
    low, median, high = (f"{x:.0f}" for x in np.quantile(per_image, (0.25, 0.5, 0.75)))
    size = f"shorter side {report.size} px" if report.size else "not resized"
    with_own = int(fit.has_positive.sum())
    counts = [
        f"{report.weights.labels[i]} {report.weights.counts[i]}" for i in report.weights.order
    ]
    after = (
        ""
        if report.loss_after is None
        else f"; with what --write suggests, {report.loss_after:.3g}"
    )
    lines = [
        f"training set: {report.num_images} images, {report.weights.counts.sum()} objects, {describe_imbalance(report.weights)}",
        f"  objects: {shorten(counts, _MAX_CLASSES)}",
        f"anchors ({num} images, {size}): {fit.num_anchors / num:.0f} an image, "
        f"of which 1 in {fit.num_anchors / max(1, per_image.sum()):.0f} is positive",
        f"  positives of an image: {median}, in half of the images {low} to {high}; mean by level: {levels}",
        f"  boxes overlapped by {fit.iou_thresh:g} or more: {_share(int(fit.is_reached.sum()), num_boxes)}; the others: "
        f"{_describe_lost(report)}",
        f"  best possible recall, by boxes with a positive anchor of their own: {_share(with_own, num_boxes)}",
        f"  loss_cls of the first step, with every score at the prior: about {report.initial_loss:.3g}{after}",
    ]
    return [*lines, f"  {_describe_gain(report)}"] if report.anchors else lines


def _describe_lost(report: TrainingSetReport) -> str:
    """Where most boxes that are not reached are: by size, and by class."""
    fit, sides = report.fit, np.sqrt(report.fit.sides.prod(axis=1))
    lost = ~fit.is_reached
    if not lost.any():
        return "none"
    small, large = (
        int((lost & x).sum()) for x in (sides < np.median(sides), sides >= np.median(sides))
    )
    shares = np.bincount(fit.classes[lost], minlength=len(report.class_names)) / np.maximum(
        np.bincount(fit.classes, minlength=len(report.class_names)), 1
    )
    worst = int(shares.argmax())
    return (
        f"{small} smaller than the median of {np.median(sides):.0f} px and {large} larger; most of class "
        f"{report.weights.labels[worst]}, {_percent(shares[worst])} of it"
    )


def _describe_gain(report: TrainingSetReport) -> str:
    anchors, after = report.anchors, report.fit_after
    finer = (
        f", and a level of stride {anchors.strides[0]}"
        if len(anchors.strides) > len(report.level_names)
        else ""
    )
    sizes = " ".join(
        f"{level[0]:.3g}-{level[-1]:.3g}" if len(level) > 1 else f"{level[0]:.3g}"
        for level in anchors.sizes
    )
    ratios = ", ".join(f"{x:g}" for x in anchors.aspect_ratios)
    shares = f"{_percent(after.score)} of the boxes instead of {_percent(report.fit.score)}"
    return f"anchors of {sizes} px, height / width {ratios}{finer} would reach {shares}"


def _advise(report: TrainingSetReport) -> str:
    return (
        "--write FILE.yaml writes anchors that fit better."
        if report.anchors
        else "Larger images, or other anchors, reach them."
    )


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole} ({_percent(part / max(1, whole))})"


def _percent(share: float) -> str:
    """One decimal; 100.0 % are all."""
    return f"{min(100 * share, 99.9 if share < 1 else 100):.1f} %"


def write_suggestion(
    report: TrainingSetReport, cfg: CfgNode, config_file: Path, opts: Sequence[str], file: Path
) -> None:
    """A config on top of `config_file` with anchors, pi per class and alpha per class."""
    if file.exists() and not file.read_text().startswith(f"# {_FIRST_LINE}"):
        raise ValueError(
            f"--write {file} exists and is not from this program; remove it or choose another name"
        )
    values: dict[str, Any] = {}
    if report.anchors:
        values["MODEL.ANCHOR_GENERATOR.SIZES"] = [list(x) for x in report.anchors.sizes]
        values["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"] = [list(report.anchors.aspect_ratios)]
        if len(report.anchors.strides) > len(report.level_names):
            values["MODEL.RESNETS.OUT_FEATURES"] = values["MODEL.FPN.IN_FEATURES"] = [
                "res2",
                "res3",
                "res4",
                "res5",
            ]
            values["MODEL.RETINANET.IN_FEATURES"] = ["p2", *report.level_names]
    values.update(get_weight_values(report.weights, _MAX_ALPHA))
    header = [
        f"{_FIRST_LINE} {' + '.join(cfg.DATASETS.TRAIN)}, from focal-det check --write.",
        *describe(report),
    ]
    write_config(file, config_file, cfg, opts, values, header)


def draw(report: TrainingSetReport, file: Path) -> None:
    fits = {"now": report.fit, **({"suggested": report.fit_after} if report.fit_after else {})}
    draw_anchor_fit(fits, report.weights.labels, report.level_names, file)


def to_json(report: TrainingSetReport) -> dict[str, Any]:
    """Figures for a program."""
    fit = report.fit
    return {
        "images": report.num_images,
        "objects_per_class": dict(zip(report.class_names, report.weights.counts.tolist())),
        "positives_per_image": float(fit.positives_per_image.mean()),
        "positives_per_level": dict(
            zip(report.level_names, (fit.positives_per_level / len(report.sample)).tolist())
        ),
        "boxes_reached": fit.score,
        "best_possible_recall": float(fit.has_positive.mean()),
        "initial_loss_cls": report.initial_loss,
        "suggested_anchors": vars(report.anchors) if report.anchors else None,
        "initial_loss_cls_with_suggested": report.loss_after,
        "boxes_reached_by_suggested": report.fit_after.score if report.fit_after else None,
    }
