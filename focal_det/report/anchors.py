"""How well anchors fit the boxes of a training set, as a figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from focal_det.imbalance.anchors import AnchorFit

_MAX_CLASSES = 25  # in the picture


def draw_anchor_fit(
    fits: Mapping[str, AnchorFit],
    class_names: Sequence[str],
    level_names: Sequence[str],
    out_file: Path,
) -> None:
    """Draw which boxes the anchors reach, by size and by class, and how many positives there are on each level.

    Args:
        fits: by what the anchors are called; the first is drawn in all panels, others beside it where that says something.
        level_names: of the first.
        out_file: picture to write.
    """
    fit, figure = next(iter(fits.values())), Figure(figsize=(13, 8), layout="constrained")
    by_size, by_iou, by_class, by_level = figure.subplots(2, 2).flat
    sides = np.sqrt(fit.sides.prod(axis=1))
    edges = 2.0 ** np.arange(
        np.floor(np.log2(sides.min())), np.ceil(np.log2(sides.max())) + 0.51, 0.5
    )
    reached, lost = sides[fit.is_reached], sides[~fit.is_reached]
    colors = ("tab:blue", "tab:red")
    by_size.hist(
        [reached, lost], edges, stacked=True, color=colors, label=("reached", "not reached")
    )
    by_size.set_xscale("log", base=2)
    by_size.xaxis.set_major_formatter("{x:g}")
    by_size.set(xlabel="side of the box in training, pixels (geometric mean)", ylabel="boxes")
    by_size.set_title(
        f"boxes that an anchor overlaps by {fit.iou_thresh:g} or more: {100 * fit.score:.1f} %"
    )
    by_size.legend()
    for name, other in fits.items():
        by_iou.hist(
            other.best_iou,
            np.linspace(0, 1, 41),
            histtype="step",
            lw=2,
            label=f"{name}: mean {other.best_iou.mean():.2f}",
        )
    by_iou.axvline(fit.iou_thresh, color="black", ls=":", lw=1)
    by_iou.set(
        xlabel="largest IoU of a box with any anchor",
        ylabel="boxes",
        title="how well the best anchor fits",
    )
    by_iou.legend(loc="upper left")
    counts = np.bincount(fit.classes, minlength=len(class_names))
    shares = np.bincount(fit.classes[~fit.is_reached], minlength=len(class_names)) / np.maximum(
        counts, 1
    )
    worst = [i for i in np.argsort(-shares, kind="stable") if counts[i]][:_MAX_CLASSES]
    by_class.barh(
        [f"{class_names[i]} ({counts[i]})" for i in worst], 100 * shares[worst], color="tab:red"
    )
    by_class.invert_yaxis()
    by_class.set(
        xlabel="boxes not reached, %",
        title="by class (boxes)",
        xlim=(0, max(1.0, 105 * shares.max())),
    )
    by_class.tick_params(axis="y", labelsize=8)
    num_images = len(fit.positives_per_image)
    by_level.bar(level_names, fit.positives_per_level / num_images, color="tab:green")
    by_level.set(ylabel="positives per image", title="positive anchors by level")
    for axes in (by_size, by_iou, by_class, by_level):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    figure.savefig(out_file, dpi=110)
