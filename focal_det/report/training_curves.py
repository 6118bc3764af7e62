"""Curves of a training: losses and average precision against iterations."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

_LOSSES = {"total_loss": "total", "loss_cls": "classification", "loss_box_reg": "box regression"}


def draw_curves(metrics: list[dict[str, Any]], out_file: Path) -> None:
    """Draw the losses on the left and AP, AP50 of every evaluation on the right.

    Args:
        metrics: from `read_metrics`; average precision in percent.
        out_file: picture to write; the suffix decides the format.
    """
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for key, label in _LOSSES.items():
        left.plot(*_series(metrics, key), label=label)
    left.set(xlabel="iteration", ylabel="loss (normalized)", title="Training loss", ylim=(0, None))
    precision_keys = sorted(
        {key for line in metrics for key in line if key.endswith(("bbox/AP", "bbox/AP50"))}
    )
    for key in precision_keys:
        right.plot(*_series(metrics, key), marker="o", label=key.replace("bbox/", ""))
    right.set(xlabel="iteration", ylabel="average precision (%)", title="Evaluation", ylim=(0, 100))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.set_xlim(0, None)
        if axes.lines:
            axes.legend()
    figure.savefig(out_file, dpi=100)


def _series(metrics: list[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    lines = [line for line in metrics if key in line]
    return [line["iteration"] + 1 for line in lines], [line[key] for line in lines]
