"""The pictures of projects/Imbalance: AP against the imbalance, and against the time of training.

python dev/draw_imbalance.py
"""

import math
import statistics
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from render_imbalance import PROJECT, get_metrics, read_results
from render_losses import pool_spread

from focal_det.report.style import COLORS, draw_grid

# In the order of the legend; the same colour in both pictures.
ANSWERS = ("FL", "CE", "OHEM")
# Rungs that differ in their imbalance alone, and how they are drawn.
LADDERS = {
    "ten classes": (("ten_60", "ten_500", "ten_4000"), "o-"),
    "one class": (("60", "500", "4000"), "s:"),
}
LONGEST = "ten_500"
SECONDS_PER_MINUTE = 60


def read_rows(table: str) -> dict[str, dict[str, Any]]:
    return {row["row"]: row for row in read_results(table)["rows"]}


def get_errors(rows: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """Standard error of each row's mean AP, with the spread pooled over the rows of a table."""
    values = {name: get_metrics(row, "AP") for name, row in rows.items()}
    spread = pool_spread([x for x in values.values() if x])
    return {name: spread / math.sqrt(len(x)) for name, x in values.items() if x}


def make_ladder() -> Figure:
    """A line per answer and number of classes: AP on each rung, with standard errors."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    rungs = read_results("rungs")["rungs"]
    for ladder, (names, style) in LADDERS.items():
        ratios = [rungs[x]["negatives_per_positive"] for x in names]
        tables = [read_rows(x) for x in names]
        for answer, color in zip(ANSWERS, COLORS):
            means = [statistics.mean(get_metrics(rows[answer], "AP")) for rows in tables]
            errors = [get_errors(rows)[answer] for rows in tables]
            label = f"{answer}, {ladder}"
            axes.errorbar(ratios, means, errors, fmt=style, capsize=3, color=color, label=label)
    axes.set_xscale("log")
    axes.set_xticks(ratios, [f"{x:,.0f}" for x in ratios])
    axes.minorticks_off()
    axes.set_xlabel("negative anchors per positive")
    lengths = [read_rows(names[0])["FL"]["runs"][0]["iterations"] for names, _ in LADDERS.values()]
    told = " or ".join(f"{length} ({name})" for length, name in zip(lengths, LADDERS))
    _finish(axes, f"AP on digits after iterations: {told}, mean and standard error")
    return figure


def make_minutes() -> Figure:
    """A line per answer on the last rung: AP after each third of the training."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    rows = read_rows(LONGEST)
    steps = read_results(f"{LONGEST}_steps")["rows"]
    histories = {
        answer: [x["AP_after"] for x in rows[answer]["runs"] if "AP_after" in x]
        for answer in ANSWERS
    }
    lengths = list(histories["FL"][0])
    spreads = [pool_spread([[x[n] for x in y] for y in histories.values()]) for n in lengths]
    for answer, color in zip(ANSWERS, COLORS):
        minutes = steps[answer]["seconds"] / SECONDS_PER_MINUTE
        values = [[history[n] for history in histories[answer]] for n in lengths]
        means = [statistics.mean(x) for x in values]
        errors = [spread / math.sqrt(len(x)) for spread, x in zip(spreads, values)]
        x = [minutes * int(n) for n in lengths]
        axes.errorbar(x, means, errors, fmt="o-", capsize=3, color=color, label=answer)
    axes.set_xlabel("minutes of training on one CPU thread")
    axes.set_xlim(left=0)
    ratio = read_results("rungs")["rungs"][LONGEST]["negatives_per_positive"]
    _finish(axes, f"AP on ten classes with {ratio:,.0f} negatives per positive, mean and SE")
    return figure


def _finish(axes: Axes, title: str) -> None:
    axes.set_ylabel("AP (%)")
    axes.set_ylim(bottom=0)
    axes.set_title(title, fontsize=10)
    draw_grid(axes)
    axes.legend(fontsize=8)


def main(folder: Path = PROJECT) -> int:
    make_ladder().savefig(folder / "ladder.png", dpi=120)
    make_minutes().savefig(folder / "minutes.png", dpi=120)
    return 0


if __name__ == "__main__":
    sys.exit(main())
