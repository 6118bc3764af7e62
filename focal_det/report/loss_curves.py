"""Value and gradient of classification losses, as figures 1, 5 and 6 of arXiv 1708.02002."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Optional

import numpy as np
from matplotlib import ticker
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from focal_det.experiments.loss_curves import NUM_POINTS, X_MAX, LossCurves, is_same_line

from .style import COLORS, GRAY, SHADE

_NUM_COLORS = 6  # the others are too light for a thin line, or look like the gray lines
_MARKERS = ("", "o")
MAX_LOSSES = _NUM_COLORS * len(_MARKERS)
_MINUS = "\N{MINUS SIGN}"
_LINE = {"linewidth": 1.6, "markersize": 4, "markerfacecolor": "white"}
_EXTRA_WIDTH = 1.2  # of a line, for each line on top of it
_LEGEND_LETTERS = 100  # in a row of the legend
_LETTERS_OF_A_LINE = 8  # as wide as the line sample of a legend entry, with its margins


def get_label(name: str, args: Mapping[str, Any]) -> str:
    """The name of a loss and its arguments as a figure shows them, with Greek letters."""
    values = (f"{_to_greek(key)}={value}".replace("-", _MINUS) for key, value in args.items())
    return " ".join([name, *values])


def _to_greek(name: str) -> str:
    return "_".join(_find_letter(part) or part for part in name.split("_"))


def _find_letter(name: str) -> Optional[str]:
    try:
        return unicodedata.lookup(f"GREEK SMALL LETTER {name}")
    except KeyError:
        return None


def make_loss_curves_figure(curves: Mapping[str, LossCurves]) -> Figure:
    """Four panels: loss and |gradient| against p_t above, loss and gradient against x_t below.

    Lines are solid for y = +1 and dashed for y = -1.

    Args:
        curves: from `compute_loss_curves`, by the label to show.

    Raises:
        ValueError: more than `MAX_LOSSES` losses, which nobody could tell apart.
    """
    if len(curves) > MAX_LOSSES:
        raise ValueError(f"a picture has room for {MAX_LOSSES} losses, got {len(curves)}")
    drawn = list(curves.values())
    styles = _make_styles()
    handles = _make_handles(curves, styles)
    num_columns = _count_columns(handles)
    notes = _make_notes(drawn)

    # Legend and notes get their own height, so that panels have the same size in all pictures.
    height = 7 + 0.2 * math.ceil(len(handles) / num_columns) + 0.16 * len(notes)
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    figure = Figure(figsize=(9, height), dpi=200, layout=layout)
    figure.legend(
        handles=handles, loc="outside upper center", ncols=num_columns, frameon=False, fontsize=9
    )
    figure.supxlabel("\n".join(notes), fontsize=8, color=GRAY)
    panels = figure.subplots(2, 2)
    for i, curve in enumerate(drawn):
        _draw_loss(panels, curve, styles[i], later=drawn[i + 1 :])
    _label_axes(panels)
    _shade_well_classified(panels)
    return figure


def _make_styles() -> list[dict[str, Any]]:
    """A line style for each of `MAX_LOSSES` losses: first all colours, then again with markers."""
    return [
        {"color": color, "marker": marker, **_LINE}
        for marker in _MARKERS
        for color in COLORS[:_NUM_COLORS]
    ]


def _make_handles(
    curves: Mapping[str, LossCurves], styles: Sequence[Mapping[str, Any]]
) -> list[Line2D]:
    """Lines of the legend: the losses, and what dashes mean where there are any."""
    handles = []
    for (label, curve), style in zip(curves.items(), styles):
        marks = "†" * curve.self_normalized + "‡" * curve.stateful
        handles.append(Line2D([], [], label=label + marks, **style))
    if any(len(curve.lines) > 1 for curve in curves.values()):
        solid = "y = +1 (object), or both"
        dashed = f"y = {_MINUS}1 (background)"
        handles.append(Line2D([], [], color=GRAY, linestyle="-", label=solid))
        handles.append(Line2D([], [], color=GRAY, linestyle="--", label=dashed))
    return handles


def _count_columns(handles: Sequence[Line2D]) -> int:
    """How many entries of the legend fit beside each other."""
    longest = max((len(str(x.get_label())) for x in handles), default=0)
    num_fitting = _LEGEND_LETTERS // (longest + _LETTERS_OF_A_LINE)
    return max(1, min(len(handles), num_fitting))


def _make_notes(curves: Sequence[LossCurves]) -> list[str]:
    """Lines under the panels: what the values of the losses depend on."""
    notes = []
    if any(x.self_normalized for x in curves):
        grid = (
            f"{NUM_POINTS} equally spaced $x_t$ from $-{X_MAX:g}$ to {X_MAX:g}, "
            f"for y = +1 and y = {_MINUS}1"
        )
        notes.append(
            "† normalizes itself: its values depend on the batch, "
            f"which is here the grid of the curves ({grid})"
        )
    if any(x.stateful for x in curves):
        notes.append("‡ changes in training: the values of the first step")
    ious = sorted({x.iou for x in curves if x.iou is not None})
    if ious:
        shown = ", ".join(f"{x:g}" for x in ious)
        notes.append(f"IoU of objects (y = +1), for losses that use it: {shown}")
    return notes


def _draw_loss(
    panels: np.ndarray, curve: LossCurves, style: Mapping[str, Any], later: Sequence[LossCurves]
) -> None:
    """Lines of one loss in the (2, 2) panels.

    They are wider if losses drawn later would hide them, so that their edges show.
    """
    for line, dashes in zip(curve.lines, ("-", "--")):
        num_hiding = sum(is_same_line(line, x.lines[0]) for x in later)
        width = style["linewidth"] + _EXTRA_WIDTH * num_hiding
        shared = {**style, "linestyle": dashes, "markevery": 0.1, "linewidth": width}
        p_t, loss, grad = line
        panels[0, 0].plot(p_t, loss, **shared)
        panels[0, 1].plot(p_t, grad.abs(), **shared)
        panels[1, 0].plot(curve.x_t, loss, **shared)
        panels[1, 1].plot(curve.x_t, grad, **shared)


def _label_axes(panels: np.ndarray) -> None:
    """Limits, labels and grid of the (2, 2) panels."""
    for axes in panels[0]:
        axes.set(xlabel="probability of the right answer, $p_t$", xlim=(0, 1))
    for axes in panels[1]:
        axes.set(xlabel="logit towards the right answer, $x_t = y\\,x$", xlim=(-X_MAX, X_MAX))
        axes.xaxis.set_major_locator(ticker.MultipleLocator(2))
    for axes in panels[:, 0]:
        axes.set_ylabel("loss (nats)")
    panels[0, 1].set_ylabel(r"$|\partial\,$loss$\,/\,\partial x|$ (nats per unit of logit)")
    panels[1, 1].set_ylabel(r"$\partial\,$loss$\,/\,\partial x_t$ (nats per unit of logit)")
    for axes in panels.flat:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)


def _shade_well_classified(panels: np.ndarray) -> None:
    """Shade the (2, 2) panels where the right answer is the likelier one, as in figure 1."""
    for axes in panels[0]:
        axes.axvspan(0.5, 1, **SHADE)
    for axes in panels[1]:
        axes.axvspan(0, X_MAX, **SHADE)
    *falling, rising = panels.flat
    for axes in falling:
        if axes.dataLim.ymin >= 0:
            axes.set_ylim(bottom=0)
        _write_well_classified(axes, y=0.97, side="top")
    # The gradient against x_t rises to 0, so the lower right corner of its panel is free.
    _write_well_classified(rising, y=0.03, side="bottom")


def _write_well_classified(axes: Axes, y: float, side: Literal["top", "bottom"]) -> None:
    axes.text(
        0.75,
        y,
        "well classified",
        transform=axes.transAxes,
        ha="center",
        va=side,
        fontsize=9,
        color=GRAY,
    )
