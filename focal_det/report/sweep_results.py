"""The results of a sweep beside the paper's: a Markdown table and a picture.

Both take the content of a json that `focal-det sweep` writes: {"table", "base", "rows": [{"row",
"paper": {metric: value}, "runs": [outcome]}]}. An outcome has "status" and, if its run came to its
end, "figures" in percent.
"""

import statistics
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from focal_det.experiments.records import get_figure

from .style import BLUE, GRAY, VERMILION

_METRICS = ("AP", "AP50", "AP75")
_OURS = BLUE
_PAPERS = VERMILION


def get_values(row: dict[str, Any], metric: str) -> list[float]:
    """A metric of each finished run of a row, in percent."""
    return [get_figure(x, metric) for x in row["runs"] if "figures" in x]


def make_results_table(content: dict[str, Any]) -> str:
    """A Markdown line per row: mean and standard deviation over seeds, and the paper's figures.

    The last column has the number of runs, and of those that diverged, crashed or detected nothing.
    """
    has_paper = any(row["paper"] for row in content["rows"])
    head = ["row", *_METRICS]
    if has_paper:
        head += [f"paper {x}" for x in _METRICS]
    head += ["s/it", "runs"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in content["rows"]:
        cells = [row["row"], *(_format(get_values(row, metric)) for metric in _METRICS)]
        if has_paper:
            papers = [[row["paper"][x]] if x in row["paper"] else [] for x in _METRICS]
            cells += map(_format, papers)
        cells += [_describe_seconds(row["runs"]), _describe_outcomes(row["runs"])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _format(values: Sequence[float]) -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):.1f}"
    if len(values) == 1:
        return mean
    return f"{mean} ± {statistics.stdev(values):.1f}"


def _describe_seconds(runs: Sequence[dict[str, Any]]) -> str:
    seconds = [x["seconds_per_iter"] for x in runs if x.get("seconds_per_iter")]
    if not seconds:
        return ""
    # The median: a run that shared the machine would raise a mean.
    return f"{statistics.median(seconds):.3f}"


def _describe_outcomes(runs: Sequence[dict[str, Any]]) -> str:
    """The number of runs, and of those with each outcome other than "done"."""
    others = [x["status"] for x in runs if x["status"] != "done"]
    # Not a set, whose order changes from process to process.
    parts = [f"{others.count(x)} {x}" for x in dict.fromkeys(others)]
    return ", ".join([str(len(runs)), *parts])


def make_results_figure(content: dict[str, Any]) -> Figure:
    """AP of every row with its standard deviation, and the paper's, in the order of the table."""
    rows = content["rows"]
    figure = Figure(figsize=(4 + 0.65 * len(rows), 5), layout="constrained")
    axes = figure.subplots()
    for index, row in enumerate(rows):
        _draw_row(axes, index, row)
    names = [row["row"] for row in rows]
    axes.set_xticks(range(len(rows)), names, rotation=35, ha="right", fontsize=8)
    axes.set_ylabel("AP (%)")
    axes.set_ylim(bottom=0)
    axes.grid(True, axis="y", color="0.9")
    title = f"Table {content['table']} on {content['base']}"
    axes.set_title(f"{title}, mean and standard deviation over seeds", fontsize=10)
    # Each row has added its own entries; one of each name is enough.
    handles, labels = axes.get_legend_handles_labels()
    entries = dict(zip(labels, handles))
    if entries:
        axes.legend(entries.values(), entries.keys(), loc="lower right", fontsize=8)
    return figure


def _draw_row(axes: Axes, index: int, row: dict[str, Any]) -> None:
    values = get_values(row, "AP")
    if values:
        mean = statistics.mean(values)
        deviation = 0.0
        if len(values) > 1:
            deviation = statistics.stdev(values)
        axes.errorbar(index, mean, deviation, fmt="o", color=_OURS, capsize=4, label="ours")
        # With three seeds, the runs themselves say more than their deviation.
        axes.plot([index] * len(values), values, ".", color=_OURS, alpha=0.4, markersize=4)
    else:
        # A gap would look like a row that was forgotten.
        note = _describe_outcomes(row["runs"])
        axes.text(index, 1, note, rotation=90, ha="center", va="bottom", color=GRAY, fontsize=8)
    if "AP" in row["paper"]:
        paper = row["paper"]["AP"]
        axes.plot(index, paper, "D", color=_PAPERS, fillstyle="none", label="paper, COCO")
