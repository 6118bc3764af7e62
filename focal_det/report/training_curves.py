"""Losses and average precision of a run against iterations, as a figure."""

from typing import Any

from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import COLORS, draw_grid

# In this order, whatever the order of the metrics.
_LOSSES = {
    "total_loss": "total",
    "loss_cls": "classification",
    "loss_box_reg": "box regression",
    "loss_rpn_cls": "RPN classification",
    "loss_rpn_loc": "RPN box regression",
}
# Beyond the number of colours, dashes tell lines apart: a cascade of three stages has nine losses.
LINES = cycler(linestyle=["-", "--"]) * cycler(color=COLORS)


def make_training_curves_figure(metrics: list[dict[str, Any]]) -> Figure:
    """The losses on the left, and AP and AP50 of every evaluation on the right.

    Args:
        metrics: from `read_metrics`; average precision in percent.
    """
    figure = Figure(figsize=(11, 4), dpi=100, layout="constrained")
    losses, precision = figure.subplots(1, 2)
    for axes in (losses, precision):
        axes.set_prop_cycle(LINES)
    for key, label in _find_losses(metrics).items():
        draw_series(losses, metrics, key, label=label)
    losses.set(ylabel="loss (normalized)", title="Training loss", ylim=(0, None))
    keys = {key for line in metrics for key in line if key.endswith(("bbox/AP", "bbox/AP50"))}
    for key in sorted(keys):
        draw_series(precision, metrics, key, label=key.replace("bbox/", ""), marker="o")
    precision.set(ylabel="average precision (%)", title="Evaluation", ylim=(0, 100))
    for axes in (losses, precision):
        finish_axes(axes)
        # Without evaluations there are no lines on the right, and an empty legend prints a warning.
        if axes.lines:
            axes.legend(fontsize="small" if len(axes.lines) > len(_LOSSES) else None)
    return figure


def _find_losses(metrics: list[dict[str, Any]]) -> dict[str, str]:
    """Labels of the losses in the metrics, by name; sorted as in `_LOSSES`, then by stage."""
    found = {key for line in metrics for key in line if key in _LOSSES or key.startswith("loss_")}
    order = list(_LOSSES)
    labels = {}
    ranks = {}
    for key in found:
        name, _, stage = key.partition("_stage")
        labels[key] = _LOSSES.get(name, name)
        if stage:
            labels[key] += f", stage {stage}"
        # Other losses, such as those of masks, come last.
        position = order.index(name) if name in order else len(order)
        ranks[key] = (position, stage, name)
    return {key: labels[key] for key in sorted(found, key=ranks.__getitem__)}


def draw_series(axes: Axes, metrics: list[dict[str, Any]], key: str, **style: Any) -> None:
    """Draw a metric against the number of iterations."""
    trained = [line["iteration"] for line in metrics if "total_loss" in line]
    # Evaluations after training count as further iterations; only the last is drawn, at the end.
    last = max(trained, default=0)
    values = {min(line["iteration"], last): line[key] for line in metrics if key in line}
    # Detectron2 counts iterations from 0.
    axes.plot([x + 1 for x in values], list(values.values()), **style)


def finish_axes(axes: Axes) -> None:
    """Grid, and the axis of the iterations."""
    draw_grid(axes)
    axes.set_xlabel("iteration")
    axes.set_xlim(0, None)
