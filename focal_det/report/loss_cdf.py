"""The normalized cumulative loss, as figure 4 of arXiv 1708.02002 shows it."""

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from focal_det.experiments.loss_cdf import SIDES, LossHistogram

from .style import COLORS, draw_grid


def make_loss_cdf_figure(
    histograms: Mapping[str, Mapping[str, LossHistogram]], title: str, *, boxes: str = "anchors"
) -> Figure:
    """One curve per entry, positives on the left and negatives on the right.

    Args:
        histograms: by curve name, then by side ("positive", "negative"); a curve may lack one.
        title: of the whole figure.
        boxes: whose losses they are, "anchors" or "proposals".
    """
    figure = Figure(figsize=(11, 4.8), dpi=120, layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axes, side in zip(figure.subplots(1, 2), SIDES):
        curves = {
            name: sides[side]
            for name, sides in histograms.items()
            if side in sides and sides[side].count
        }
        _draw_side(axes, side, curves, boxes)
    return figure


def _draw_side(axes: Axes, side: str, curves: Mapping[str, LossHistogram], boxes: str) -> None:
    """The curves of the positives or of the negatives."""
    for i, (name, histogram) in enumerate(curves.items()):
        fractions, shares = histogram.compute_curve()
        # The colours are used up after the eighth curve; dashes tell the next eight apart.
        dashes = "-" if i < len(COLORS) else "--"
        color = COLORS[i % len(COLORS)]
        axes.plot(fractions, shares, color=color, linestyle=dashes, label=name)
    title = f"no {side} {boxes}"
    if curves:
        count = max(x.count for x in curves.values())
        title = f"{count:,} {side} {boxes}"
        axes.legend(loc="upper left", fontsize=8)
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(f"fraction of the {side}s, from easy to hard")
    axes.set_ylabel("share of their loss")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    draw_grid(axes)
