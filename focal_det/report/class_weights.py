"""Objects, alpha and pi of each class, as a figure."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from focal_det.imbalance.class_weights import ClassWeights

from .style import BLUE, GREEN, VERMILION, draw_grid

_MAX_NAMED_CLASSES = 120  # with more classes, the figure shows the curve without names
_MAX_LARGE_ROWS = 30  # with more classes, the letters are smaller
_CHOSEN_LINE: dict[str, Any] = {"lw": 2, "color": VERMILION, "marker": "o"}
_THIN_LINE: dict[str, Any] = {"lw": 0.9, "color": "0.35"}
_DASHES = {"inverse": "-", "sqrt": "--", "effective": "-."}


def make_class_weights_figure(weights: ClassWeights, title: str) -> Figure:
    """Objects, alpha and pi of each class side by side, a row per class, most frequent first.

    Alpha or pi has no panel if the detector does not take it per class.

    Args:
        weights: the alphas of its method are drawn thick, those of other methods as thin lines,
            and the scalars dotted.
        title: of the whole figure.
    """
    num_classes = len(weights.counts)
    is_named = num_classes <= _MAX_NAMED_CLASSES
    figure = Figure(figsize=(12, _get_height(num_classes)), dpi=110, layout="constrained")
    figure.suptitle(title, fontsize=11)
    objects, *others = _make_panels(figure, 1 + bool(weights.alphas) + (weights.priors is not None))
    # Counts span orders of magnitude: on a linear axis, rare classes would have no visible bar.
    objects.set_xscale("log")
    objects.set_xlim(0.7, 4.0 * weights.counts.max())
    # Rows are counted downwards, as in a table.
    objects.set_ylim(num_classes - 0.4, -0.6)
    objects.set_xlabel("objects")
    if is_named:
        _draw_named_objects(objects, weights)
    else:
        _draw_object_curve(objects, weights)
    if weights.alphas:
        _draw_alphas(others[0], weights, marker_size=4 if is_named else 0)
    if weights.priors is not None:
        _draw_priors(others[-1], weights, weights.priors, marker_size=4 if is_named else 1.5)
    for axes in (objects, *others):
        draw_grid(axes)
    return figure


def _make_panels(figure: Figure, number: int) -> Sequence[Axes]:
    """Panels side by side; the first, which has the names of the classes, is a little wider."""
    ratios = (1.15, *[1] * (number - 1))
    panels = figure.subplots(1, number, sharey=True, width_ratios=ratios, squeeze=False)
    return list(panels[0])


def _get_height(num_classes: int) -> float:
    """Height of the figure in inches."""
    if num_classes > _MAX_NAMED_CLASSES:
        return 9.0
    row_height = 0.26
    if num_classes > _MAX_LARGE_ROWS:
        row_height = 0.2
    return max(3.2, 1.5 + row_height * num_classes)


def _draw_named_objects(axes: Axes, weights: ClassWeights) -> None:
    """A bar with its number for each class."""
    name_size = 10
    if len(weights.counts) > _MAX_LARGE_ROWS:
        name_size = 8
    counts = weights.counts[weights.order]
    rows = np.arange(len(counts))
    axes.barh(rows, counts, color=BLUE, alpha=0.75)
    axes.set_yticks(rows, [weights.labels[i] for i in weights.order], fontsize=name_size)
    for row, count in enumerate(counts):
        # A class without objects has no place on the logarithmic axis; its 0 stands at the edge.
        axes.text(1.1 * max(count, 0.7), row, str(count), va="center", fontsize=name_size - 1)


def _draw_object_curve(axes: Axes, weights: ClassWeights) -> None:
    counts = weights.counts[weights.order]
    axes.fill_betweenx(np.arange(len(counts)), counts, color=BLUE, alpha=0.75, step="mid")
    axes.set_ylabel("rank by number of objects")


def _draw_alphas(axes: Axes, weights: ClassWeights, marker_size: float) -> None:
    """A line for each method, the chosen one on top."""
    rows = np.arange(len(weights.counts))
    for method in sorted(weights.alphas, key=lambda x: x == weights.method):
        style = {**_THIN_LINE, "ls": _DASHES[method], "label": method}
        if method == weights.method:
            style = {**_CHOSEN_LINE, "label": f"{method} (written)"}
        axes.plot(weights.alphas[method][weights.order], rows, markersize=marker_size, **style)
    axes.set_xlim(0, 1)
    axes.set_xlabel("alpha: weight of the positives")
    _draw_scalar(axes, weights.scalar_alpha, "scalar alpha")


def _draw_priors(axes: Axes, weights: ClassWeights, priors: np.ndarray, marker_size: float) -> None:
    """Priors (K,) on a logarithmic axis."""
    rows = np.arange(len(priors))
    source = "positives per anchor" if weights.is_prior_measured else "share of the objects"
    axes.plot(priors[weights.order], rows, "o", ms=marker_size, color=GREEN, label=source)
    axes.set_xscale("log")
    # On an axis of about one decade, labels appear between powers of 10, too, and would overlap.
    axes.tick_params(axis="x", which="minor", labelsize=6)
    axes.set_xlabel("pi: probability at the start")
    _draw_scalar(axes, weights.scalar_prior, "scalar pi")


def _draw_scalar(axes: Axes, value: float, name: str) -> None:
    """Draw the config's scalar, which the numbers per class replace, and the legend."""
    axes.axvline(value, color="black", lw=1, ls=":", label=f"{name} {value:g}")
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
