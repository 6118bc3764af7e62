"""How well anchors fit the boxes of a training set, as a figure."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from focal_det.imbalance.anchors import AnchorFit

from .style import BLUE, COLORS, GREEN, VERMILION, draw_grid

_MAX_CLASSES = 25  # rows of the per-class panel
_NUM_IOU_BINS = 40


def make_anchor_figure(
    fits: Mapping[str, AnchorFit], class_names: Sequence[str], level_names: Sequence[str]
) -> Figure:
    """Plot which boxes the anchors reach, by size, IoU and class, and the positives per level.

    A box is reached if its IoU with some anchor is at least the fit's `iou_thresh`.

    Args:
        fits: anchor fits by display name. The first is drawn in all panels, the others only in
            the IoU panel, where they can be compared.
        class_names: K names.
        level_names: names of the levels of the first fit.
    """
    fit = next(iter(fits.values()))
    figure = Figure(figsize=(13, 8), dpi=110, layout="constrained")
    panels = figure.subplots(2, 2)
    _draw_sizes(panels[0, 0], fit)
    _draw_ious(panels[0, 1], fits, {fit.iou_thresh, fit.positive_thresh})
    _draw_classes(panels[1, 0], fit, class_names)
    _draw_levels(panels[1, 1], fit, level_names)
    for axes in panels.flat:
        draw_grid(axes)
    return figure


def _draw_sizes(axes: Axes, fit: AnchorFit) -> None:
    """Boxes by size, stacked: reached and not reached."""
    sides = np.sqrt(fit.sides.prod(axis=1))
    low = np.floor(np.log2(sides.min()))
    high = np.ceil(np.log2(sides.max()))
    # Bins of half an octave, one of them beyond the largest side, so that there is at least one.
    edges = 2.0 ** np.arange(low, high + 0.75, 0.5)
    axes.hist(
        [sides[fit.is_reached], sides[~fit.is_reached]],
        edges.tolist(),
        stacked=True,
        color=(BLUE, VERMILION),
        label=("reached", "not reached"),
    )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("side of the box in training, pixels (geometric mean)")
    axes.set_ylabel("boxes")
    axes.set_title(
        f"boxes with an anchor of IoU {fit.iou_thresh:g} or more: {100 * fit.score:.1f} %"
    )
    axes.legend()


def _draw_ious(axes: Axes, fits: Mapping[str, AnchorFit], thresholds: Collection[float]) -> None:
    """The largest IoU of each box, one line per fit; thresholds are dotted."""
    edges = np.linspace(0, 1, _NUM_IOU_BINS + 1)
    axes.set_prop_cycle(color=COLORS)
    for name, fit in fits.items():
        label = f"{name}: mean {fit.best_iou.mean():.2f}"
        axes.hist(fit.best_iou, edges.tolist(), histtype="step", lw=2, label=label)
    for threshold in thresholds:
        axes.axvline(threshold, color="black", ls=":", lw=1)
    axes.set_xlabel("largest IoU of a box with any anchor")
    axes.set_ylabel("boxes")
    axes.set_title("how well the best anchor fits")
    axes.legend(loc="upper left")


def _draw_classes(axes: Axes, fit: AnchorFit, class_names: Sequence[str]) -> None:
    """Share of boxes not reached, for the classes with the highest share."""
    counts = np.bincount(fit.classes, minlength=len(class_names))
    lost = np.bincount(fit.classes[~fit.is_reached], minlength=len(class_names))
    shares = lost / np.maximum(counts, 1)
    worst = [i for i in np.argsort(-shares, kind="stable") if counts[i]][:_MAX_CLASSES]
    labels = [f"{class_names[i]} ({counts[i]})" for i in worst]
    axes.barh(labels, 100 * shares[worst], color=VERMILION)
    axes.invert_yaxis()
    # At least 1, as the axis would have no length if all boxes were reached.
    axes.set_xlim(0, max(1.0, 105 * shares.max()))
    axes.set_xlabel("boxes not reached, %")
    axes.set_title("by class (number of boxes)")
    axes.tick_params(axis="y", labelsize=8)


def _draw_levels(axes: Axes, fit: AnchorFit, level_names: Sequence[str]) -> None:
    """Mean number of positive anchors on each level."""
    num_images = len(fit.positives_per_image)
    axes.bar(level_names, fit.positives_per_level / num_images, color=GREEN)
    axes.set_ylabel("positives per image")
    axes.set_title("positive anchors by level")
