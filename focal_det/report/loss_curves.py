"""Value and gradient of classification losses, as figures 1, 5 and 6 of arXiv 1708.02002 show them."""

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from focal_det.experiments.loss_curves import NUM_POINTS, X_MAX, LossCurves, is_same_line

MAX_LOSSES = 12
# Colors of Okabe and Ito that color-blind readers tell apart on white; after them the same with markers.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00")
_MARKERS = ("", "o")
_MINUS = "\N{MINUS SIGN}"
_LINE = {"linewidth": 1.6, "markersize": 4, "markerfacecolor": "white"}
_GRAY = "0.4"
_SHADE = {"color": "0.5", "alpha": 0.1, "linewidth": 0, "zorder": 0}


def get_label(name: str, args: Mapping[str, Any]) -> str:
    """How a picture calls a loss with these arguments: the name, then the arguments, with Greek letters."""
    values = (f"{_to_greek(key)}={value}".replace("-", _MINUS) for key, value in args.items())
    return " ".join([name, *values])


def _to_greek(name: str) -> str:
    return "_".join(_find_letter(part) or part for part in name.split("_"))


def _find_letter(name: str) -> Optional[str]:
    try:
        return unicodedata.lookup(f"GREEK SMALL LETTER {name}")
    except KeyError:
        return None


def draw_loss_curves(curves: Mapping[str, LossCurves], out_files: Sequence[Path]) -> None:
    """Draw losses into one picture, in each of the given formats; see `make_figure`.

    Args:
        curves: from `compute_loss_curves`, by the label to show.
        out_files: pictures to write; their suffixes decide the formats.
    """
    figure = make_figure(curves)
    for file in out_files:
        figure.savefig(file, dpi=200)


def make_figure(curves: Mapping[str, LossCurves]) -> Figure:
    """Four panels: loss and |gradient| against p_t above, loss and gradient against x_t below; solid for y = +1, dashed for y = -1.

    Raises:
        ValueError: more than `MAX_LOSSES` losses, which nobody could tell apart.
    """
    if len(curves) > MAX_LOSSES:
        raise ValueError(f"a picture has room for {MAX_LOSSES} losses, got {len(curves)}")
    styles = [dict(color=color, marker=marker, **_LINE) for marker in _MARKERS for color in _COLORS]
    handles = [
        Line2D([], [], label=_mark(label, curve), **style)
        for (label, curve), style in zip(curves.items(), styles)
    ]
    if any(len(curve.lines) > 1 for curve in curves.values()):
        labels = {"-": "y = +1 (object), or both", "--": f"y = {_MINUS}1 (background)"}
        handles += [
            Line2D([], [], color=_GRAY, linestyle=dashes, label=label)
            for dashes, label in labels.items()
        ]
    columns = max(
        1, min(len(handles), 100 // (max((len(x.get_label()) for x in handles), default=0) + 8))
    )
    notes = _make_notes(curves.values())

    height = 7 + 0.2 * math.ceil(len(handles) / columns) + 0.16 * len(notes)
    figure = Figure(figsize=(9, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.08)
    figure.legend(
        handles=handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=9
    )
    figure.supxlabel("\n".join(notes), fontsize=8, color=_GRAY)
    panels = figure.subplots(2, 2)
    drawn = list(curves.values())
    for i, curve in enumerate(drawn):
        _draw_loss(panels, curve, styles[i], later=drawn[i + 1 :])
    _decorate(panels)
    return figure


def _mark(label: str, curve: LossCurves) -> str:
    return label + "†" * curve.self_normalized + "‡" * curve.stateful


def _make_notes(curves: Iterable[LossCurves]) -> list[str]:
    """Lines under the picture: what the values of the losses depend on."""
    curves, notes = list(curves), []
    if any(x.self_normalized for x in curves):
        grid = f"{NUM_POINTS} equally spaced $x_t$ from $-{X_MAX:g}$ to {X_MAX:g}, for y = +1 and y = {_MINUS}1"
        notes.append(
            f"† normalizes itself: its values depend on the batch, which is here the grid of the curves ({grid})"
        )
    if any(x.stateful for x in curves):
        notes.append("‡ changes in training: the values of the first step")
    ious = sorted({x.iou for x in curves if x.iou is not None})
    if ious:
        notes.append(
            f"IoU of objects (y = +1), for losses that use it: {', '.join(f'{x:g}' for x in ious)}"
        )
    return notes


def _draw_loss(
    panels: np.ndarray, curve: LossCurves, style: dict[str, Any], later: Sequence[LossCurves]
) -> None:
    """Lines of one loss in the (2, 2) panels, wider where losses drawn later would hide them, so that their edges show."""
    for line, dashes in zip(curve.lines, ("-", "--")):
        num_hiding = sum(is_same_line(line, x.lines[0]) for x in later)
        shared = dict(
            style, linestyle=dashes, markevery=0.1, linewidth=style["linewidth"] + 1.2 * num_hiding
        )
        p_t, loss, grad = line
        panels[0, 0].plot(p_t, loss, **shared)
        panels[0, 1].plot(p_t, grad.abs(), **shared)
        panels[1, 0].plot(curve.x_t, loss, **shared)
        panels[1, 1].plot(curve.x_t, grad, **shared)


def _decorate(panels: np.ndarray) -> None:
    """Axes of the (2, 2) panels, and gray where the right answer is the likelier one."""
    for axes in panels[0]:
        axes.set(xlabel="probability of the right answer, $p_t$", xlim=(0, 1))
        axes.axvspan(0.5, 1, **_SHADE)
    for axes in panels[1]:
        axes.set(xlabel="logit towards the right answer, $x_t = y\\,x$", xlim=(-X_MAX, X_MAX))
        axes.xaxis.set_major_locator(ticker.MultipleLocator(2))
        axes.axvspan(0, X_MAX, **_SHADE)
    for axes in panels[:, 0]:
        axes.set_ylabel("loss (nats)")
    panels[0, 1].set_ylabel(r"$|\partial\,$loss$\,/\,\partial x|$ (nats per unit of logit)")
    panels[1, 1].set_ylabel(r"$\partial\,$loss$\,/\,\partial x_t$ (nats per unit of logit)")
    for axes in panels.flat:
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        falling = axes is not panels[1, 1]
        if falling and axes.dataLim.ymin >= 0:
            axes.set_ylim(bottom=0)
        y, side = (0.97, "top") if falling else (0.03, "bottom")
        axes.text(
            0.75,
            y,
            "well classified",
            transform=axes.transAxes,
            ha="center",
            va=side,
            fontsize=9,
            color=_GRAY,
        )
