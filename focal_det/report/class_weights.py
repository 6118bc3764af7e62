"""Objects, alpha and pi of each class, as a figure."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from focal_det.imbalance.class_weights import ClassWeights

_MAX_NAMED_CLASSES = 120  # of more classes, the picture shows the curve without names
_CHOSEN_LINE = {"lw": 2, "color": "tab:red", "marker": "o"}
_THIN_LINE = {"lw": 0.9, "color": "0.35"}
_DASHES = {"inverse": "-", "sqrt": "--", "effective": "-."}


def draw_class_weights(weights: ClassWeights, out_file: Path, *, title: str) -> None:
    """Draw objects, alpha and pi of each class side by side, a row per class, the most frequent on top.

    Args:
        weights: what is drawn; alphas of other methods than the chosen one as thin lines, the scalars dotted.
        out_file: picture to write; the suffix decides the format.
        title: stands above.
    """
    order, num_classes = weights.order, len(weights.counts)
    named, small = num_classes <= _MAX_NAMED_CLASSES, num_classes > 30
    rows, height = (
        np.arange(num_classes),
        1.5 + (0.2 if small else 0.26) * num_classes if named else 9.0,
    )
    figure = Figure(figsize=(12, max(3.2, height)), layout="constrained")
    figure.suptitle(title, fontsize=11)
    left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=(1.15, 1, 1))
    left.set(
        xscale="log",
        xlim=(0.7, 4.0 * weights.counts.max()),
        xlabel="objects",
        ylim=(num_classes - 0.4, -0.6),
    )
    for method, alphas in sorted(weights.alphas.items(), key=lambda x: x[0] == weights.method):
        style = _CHOSEN_LINE if method == weights.method else {**_THIN_LINE, "ls": _DASHES[method]}
        label = f"{method} (written)" if method == weights.method else method
        middle.plot(alphas[order], rows, label=label, markersize=4 if named else 0, **style)
    middle.set(xlim=(0, 1), xlabel="alpha: weight of the positives")
    right.plot(
        weights.priors[order],
        rows,
        "o",
        ms=4 if named else 1.5,
        color="tab:green",
        label="positives per anchor",
    )
    right.set(xscale="log", xlabel="pi: probability at the start")
    _draw_scalar(middle, weights.scalar_alpha, f"scalar alpha {weights.scalar_alpha:g}")
    _draw_scalar(right, weights.scalar_prior, f"scalar pi {weights.scalar_prior:g}")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    if named:
        left.barh(rows, weights.counts[order], color="tab:blue", alpha=0.75)
        left.set_yticks(rows, [weights.labels[i] for i in order], fontsize=8 if small else 10)
        for row, count in enumerate(weights.counts[order]):
            left.text(
                1.1 * max(count, 0.7), row, str(count), va="center", fontsize=7 if small else 9
            )
    else:
        left.fill_betweenx(rows, weights.counts[order], color="tab:blue", alpha=0.75, step="mid")
        left.set_ylabel("rank by number of objects")
    figure.savefig(out_file, dpi=110)


def _draw_scalar(axes: Axes, value: float, label: str) -> None:
    axes.axvline(value, color="black", lw=1, ls=":", label=label)
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
