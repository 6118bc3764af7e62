"""Curves of classification losses: value and gradient against p_t and x_t, as in figures 1, 5 and 6 of arXiv 1708.02002.

Any `ClsLoss` is asked for its values through its interface, with one class: x is the logit of that class, above a background logit
of 0 if the loss has one; y = +1 for an object and -1 for background; x_t = y x; p_t is the probability of the right answer. G is
the number of points of a curve.
"""

import copy
import dataclasses
import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from matplotlib import ticker
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor
from torch.nn import functional as F

from focal_det.losses import ClsLoss
from focal_det.targets import DenseTargets

MAX_LOSSES = 12
_X_MAX, _NUM_POINTS = 6.0, 1201
# Colors of Okabe and Ito that color-blind readers tell apart on white; after them the same with markers.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#000000", "#E69F00")
_MARKERS = ("", "o")
_MINUS = "\N{MINUS SIGN}"
_LINE = {"linewidth": 1.6, "markersize": 4, "markerfacecolor": "white"}
_GRAY = "0.4"
_SHADE = {"color": "0.5", "alpha": 0.1, "linewidth": 0, "zorder": 0}


@dataclasses.dataclass(frozen=True)
class LossCurves:
    """Values of one loss. Where there are two rows, the first is for y = +1 and the second for y = -1.

    Attributes:
        x_t: (G,) from -6 to 6, equally spaced.
        p_t: (2, G) in [0, 1].
        loss: (2, G) nats.
        grad: (2, G) derivative of the loss with respect to x_t; that with respect to x is y times it.
        iou: IoU of the positives, None for a loss that does not ask for it.
        self_normalized: True if the values are parts of a mean over the batch, which is the grid.
        stateful: True if training changes the values; these are of the first step.
    """

    x_t: Tensor
    p_t: Tensor
    loss: Tensor
    grad: Tensor
    iou: Optional[float]
    self_normalized: bool
    stateful: bool

    @property
    def lines(self) -> list[Tensor]:
        """(3, G) p_t, loss and gradient to draw: for y = +1, and for y = -1 unless it is the same function of x_t."""
        pos, neg = torch.stack([self.p_t, self.loss, self.grad], dim=1)
        return [pos] if _is_same_line(pos, neg) else [pos, neg]


def compute_loss_curves(loss: ClsLoss, *, iou: float = 1.0) -> LossCurves:
    """Evaluate a loss on one batch of 2 G images with one anchor each: G values of x_t, for y = +1 and for y = -1.

    Args:
        loss: built for one class; it is not modified.
        iou: IoU of the positives with their boxes, in [0, 1], for losses that need it.

    Raises:
        ValueError: `iou` out of range, or the loss is made for another number of classes.
    """
    if not 0 <= iou <= 1:
        raise ValueError(f"iou must be in [0, 1], got {iou}")
    loss = copy.deepcopy(loss)
    x_t = torch.linspace(-_X_MAX, _X_MAX, _NUM_POINTS)
    y = torch.tensor([[1.0], [-1.0]])
    x = (y * x_t).requires_grad_()
    logits = F.pad(x.reshape(-1, 1, 1), (0, loss.num_outputs(1) - 1))
    values = loss([logits], _make_targets(iou, loss.needs))
    (grad,) = torch.autograd.grad(values.sum(), x)
    score = loss.scores(logits.detach())[..., 0].reshape(2, -1)
    return LossCurves(
        x_t=x_t,
        p_t=torch.stack([score[0], 1 - score[1]]),
        loss=values.detach().reshape(2, -1),
        grad=y * grad,
        iou=iou if "iou" in loss.needs else None,
        self_normalized=loss.self_normalized,
        stateful=loss.stateful,
    )


def _is_same_line(a: Tensor, b: Tensor) -> bool:
    size = torch.maximum(a.abs(), b.abs()).amax(dim=1, keepdim=True)
    return bool(((a - b).abs() <= 1e-4 * size).all())


def _make_targets(iou: float, needs: frozenset[str]) -> DenseTargets:
    """Labels (2 G, 1): G images with an object, then G with background; beside them what the loss needs."""
    labels = torch.tensor([0, 1]).repeat_interleave(_NUM_POINTS).reshape(-1, 1)
    box = torch.tensor([0.0, 0.0, 32.0, 32.0])
    targets = DenseTargets.from_labels(labels, box.expand(len(labels), 1, 4), num_classes=1)
    known = {"anchors": box.reshape(1, 4), "iou": iou * (labels == 0).float()}
    return dataclasses.replace(targets, **{name: known[name] for name in needs})


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
        grid = f"{_NUM_POINTS} equally spaced $x_t$ from $-{_X_MAX:g}$ to {_X_MAX:g}, for y = +1 and y = {_MINUS}1"
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
        num_hiding = sum(_is_same_line(line, x.lines[0]) for x in later)
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
        axes.set(xlabel="logit towards the right answer, $x_t = y\\,x$", xlim=(-_X_MAX, _X_MAX))
        axes.xaxis.set_major_locator(ticker.MultipleLocator(2))
        axes.axvspan(0, _X_MAX, **_SHADE)
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
