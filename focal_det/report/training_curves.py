"""Losses and average precision of a run against iterations, as a figure."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import COLORS, draw_grid

_LOSSES = {"total_loss": "total", "loss_cls": "classification", "loss_box_reg": "box regression"}


def make_training_curves_figure(metrics: list[dict[str, Any]]) -> Figure:
    """The losses on the left, and AP and AP50 of every evaluation on the right.

    Args:
        metrics: from `read_metrics`; average precision in percent.
    """
    figure = Figure(figsize=(11, 4), dpi=100, layout="constrained")
    losses, precision = figure.subplots(1, 2)
    for axes in (losses, precision):
        axes.set_prop_cycle(color=COLORS)
    for key, label in _LOSSES.items():
        _draw_series(losses, metrics, key, label=label)
    losses.set(ylabel="loss (normalized)", title="Training loss", ylim=(0, None))
    keys = {key for line in metrics for key in line if key.endswith(("bbox/AP", "bbox/AP50"))}
    for key in sorted(keys):
        _draw_series(precision, metrics, key, label=key.replace("bbox/", ""), marker="o")
    precision.set(ylabel="average precision (%)", title="Evaluation", ylim=(0, 100))
    for axes in (losses, precision):
        draw_grid(axes)
        axes.set_xlabel("iteration")
        axes.set_xlim(0, None)
        # Without evaluations there are no lines on the right, and an empty legend would warn.
        if axes.lines:
            axes.legend()
    return figure


def _draw_series(axes: Axes, metrics: list[dict[str, Any]], key: str, **style: Any) -> None:
    trained = [line["iteration"] for line in metrics if "total_loss" in line]
    # Evaluations after training count as further iterations; the last one is the run's result.
    last = max(trained, default=0)
    values = {min(line["iteration"], last): line[key] for line in metrics if key in line}
    # Detectron2 counts iterations from 0.
    axes.plot([x + 1 for x in values], list(values.values()), **style)
