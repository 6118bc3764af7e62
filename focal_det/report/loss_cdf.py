"""The normalized cumulative loss, as figure 4 of arXiv 1708.02002 shows it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from focal_det.experiments.loss_cdf import SIDES, LossHistogram

_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00", "#56B4E9", "#999999")


def draw_loss_cdf(
    histograms: Mapping[str, Mapping[str, LossHistogram]], title: str, out_files: Sequence[Path]
) -> None:
    """Draw one curve per entry, positives on the left and negatives on the right.

    Args:
        histograms: by curve and then by side; a curve may have one side only.
        title: of the picture.
        out_files: pictures to write; the suffix decides the format.
    """
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    figure.suptitle(title, fontsize=10)
    for axes, side in zip(figure.subplots(1, 2), SIDES):
        curves = {
            name: sides[side]
            for name, sides in histograms.items()
            if side in sides and sides[side].count
        }
        for i, (name, histogram) in enumerate(curves.items()):
            fractions, shares = histogram.compute_curve()
            axes.plot(
                fractions,
                shares,
                color=_COLORS[i % len(_COLORS)],
                label=name,
                linestyle="-" if i < len(_COLORS) else "--",
            )
        count = max((x.count for x in curves.values()), default=0)
        axes.set_title(f"{count:,} {side} anchors" if count else f"no {side} anchors", fontsize=10)
        axes.set_xlabel(f"fraction of the {side}s, from easy to hard")
        axes.set_ylabel("share of their loss")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.grid(True, color="0.9")
        if curves:
            axes.legend(loc="upper left", fontsize=8)
    for file in out_files:
        figure.savefig(file, dpi=120)
