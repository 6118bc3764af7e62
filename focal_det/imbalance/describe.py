"""Describes the measurements of a training set in words."""

import numpy as np

from focal_det.messages import shorten

from .class_weights import ClassWeights
from .describe_stages import describe_stages, to_ratio
from .measure import TrainingSetReport

_MAX_CLASSES = 12  # classes listed with their object counts


def describe(report: TrainingSetReport) -> list[str]:
    """Human-readable lines."""
    lines = [_describe_imbalance(report)]
    lines += [f"  {x.topic}: {line}" for x in report.advice for line in x.lines]
    lines += _describe_objects(report)
    lines += [*_describe_positives(report), *_describe_boxes(report)]
    lines += describe_stages(report.stages, report.weights.counts, report.loss_after)
    if report.anchors:
        lines.append(f"  {describe_gain(report)}")
    return lines


def _describe_imbalance(report: TrainingSetReport) -> str:
    anchors = "no positive anchors"
    balance = report.stages[0].balance
    if balance is not None and balance.positives > 0:
        anchors = f"{to_ratio(balance)} negative anchors per positive"
    return f"imbalance: {anchors}; {describe_imbalance(report.weights)}"


def _describe_objects(report: TrainingSetReport) -> list[str]:
    weights = report.weights
    objects = [f"{weights.labels[i]} {weights.counts[i]}" for i in weights.order]
    return [
        f"training set: {report.num_images} images, {weights.counts.sum()} objects",
        f"  objects: {shorten(objects, _MAX_CLASSES)}",
    ]


def _describe_positives(report: TrainingSetReport) -> list[str]:
    fit = report.fit
    num_images = len(report.sample)
    size = describe_size(report.size)
    low, median, high = np.quantile(fit.positives_per_image, (0.25, 0.5, 0.75))
    means = zip(report.level_names, fit.positives_per_level / num_images)
    levels = ", ".join(f"{name} {mean:.3g}" for name, mean in means)
    labels = ""
    if report.stands_in_for:
        labels = f"; labelled by IoU, as {report.stands_in_for} needs predictions"
    return [
        f"anchors ({num_images} images, {size}): {fit.num_anchors / num_images:.0f} per image"
        f"{labels}",
        f"  positives per image: median {median:.0f}, middle half {low:.0f} to {high:.0f}; "
        f"mean per level: {levels}",
    ]


def _describe_boxes(report: TrainingSetReport) -> list[str]:
    fit = report.fit
    num_boxes = len(fit.best_iou)
    lines = [
        f"  boxes that an anchor overlaps with IoU >= {fit.iou_thresh:g}: "
        f"{to_share(int(fit.is_reached.sum()), num_boxes)}; "
        f"boxes not reached: {describe_lost(report)}",
    ]
    if fit.has_iou_thresh and fit.positive_thresh > fit.iou_thresh:
        num_above = int((fit.best_iou >= fit.positive_thresh).sum())
        lines.append(
            f"  boxes with a positive anchor of IoU >= {fit.positive_thresh:g}: "
            f"{to_share(num_above, num_boxes)}; the others train on their best anchor only"
        )
    matched = "boxes matched to a positive anchor"
    # The box head of a two-stage detector trains on the other boxes, too.
    if len(report.stages) == 1:
        matched = f"upper bound of recall ({matched})"
    lines.append(f"  {matched}: {to_share(int(fit.has_positive.sum()), num_boxes)}")
    return lines


def describe_size(size: int) -> str:
    """The shorter side of the images in training, in pixels; 0 if they are not resized."""
    return f"shorter side {size} px" if size else "not resized"


def describe_imbalance(weights: ClassWeights) -> str:
    """Number of classes, and the ratio of the most to the least frequent class that has objects."""
    order = [i for i in weights.order if weights.counts[i]]
    most = order[0]
    least = order[-1]
    if len(weights.counts) == 1:
        return "1 class"
    ratio = weights.counts[most] / weights.counts[least]
    if ratio == 1:
        return f"{len(weights.counts)} classes with equally many objects"
    return (
        f"{len(weights.counts)} classes, {ratio:.4g} times as many objects of class "
        f"{weights.labels[most]} as of class {weights.labels[least]}"
    )


def describe_lost(report: TrainingSetReport) -> str:
    """How large the unreached boxes are, and which class loses the largest share of its boxes."""
    fit = report.fit
    lost = ~fit.is_reached
    if not lost.any():
        return "none"
    sides = np.sqrt(fit.sides.prod(axis=1))
    num_small = int((lost & (sides < np.median(sides))).sum())

    # By share, not by number: a rare class that is lost would hide behind a frequent one.
    num_classes = len(report.class_names)
    counts = np.bincount(fit.classes, minlength=num_classes)
    shares = np.bincount(fit.classes[lost], minlength=num_classes) / np.maximum(counts, 1)
    worst = int(shares.argmax())
    return (
        f"{num_small} smaller than the median side of {np.median(sides):.0f} px, "
        f"{lost.sum() - num_small} not smaller; worst class: {report.weights.labels[worst]}, "
        f"which loses {to_percent(shares[worst])} of its boxes"
    )


def describe_gain(report: TrainingSetReport) -> str:
    """The suggested anchors, and the share of the boxes they reach.

    Raises:
        ValueError: the report suggests none.
    """
    anchors = report.anchors
    fit_after = report.fit_after
    if anchors is None or fit_after is None:
        raise ValueError("the report suggests no anchors")
    finer = ""
    if len(anchors.strides) > len(report.level_names):
        finer = f", and a level of stride {anchors.strides[0]}"
    # A level with a single size is shown as that, not as a range.
    ranges = [sorted({min(level), max(level)}) for level in anchors.sizes]
    sizes = " ".join("-".join(f"{x:.3g}" for x in ends) for ends in ranges)
    ratios = ", ".join(f"{x:g}" for x in anchors.aspect_ratios)
    return (
        f"anchors of {sizes} px with height/width {ratios}{finer} would reach "
        f"{to_percent(fit_after.score)} of the boxes, against {to_percent(report.fit.score)} now"
    )


def to_share(part: int, whole: int) -> str:
    """Both numbers, and their ratio in percent."""
    return f"{part} of {whole} ({to_percent(part / max(1, whole))})"


def to_percent(share: float) -> str:
    """One decimal; nothing but 1.0 is rounded to 100.0 %."""
    if share == 1:
        return "100.0 %"
    return f"{min(100 * share, 99.9):.1f} %"
