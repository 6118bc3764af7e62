"""The results of a sweep beside the paper's: a Markdown table and a picture.

`content` is what `focal-det sweep` writes: {"table", "base", "rows": [{"row", "paper": {metric: value}, "runs": [outcome]}]}, where
an outcome has "status", and "figures" in percent if the training came to its end.
"""

import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from focal_det.experiments.records import get_figure

_METRICS = ("AP", "AP50", "AP75")


def get_values(row: dict[str, Any], metric: str) -> list[float]:
    """A metric of each run of a row that came to its end."""
    return [get_figure(x, metric) for x in row["runs"] if "figures" in x]


def make_markdown(content: dict[str, Any]) -> str:
    """One line per row: mean and standard deviation over seeds, the paper's figures, and what did not come to its end."""
    has_paper = any(row["paper"] for row in content["rows"])
    head = [
        "row",
        *_METRICS,
        *([f"paper {x}" for x in _METRICS] if has_paper else []),
        "s/it",
        "runs",
    ]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in content["rows"]:
        cells = [row["row"], *(_format(get_values(row, metric)) for metric in _METRICS)]
        if has_paper:
            cells += [f"{row['paper'][x]:.1f}" if x in row["paper"] else "" for x in _METRICS]
        seconds = [x["seconds_per_iter"] for x in row["runs"] if x.get("seconds_per_iter")]
        cells += [
            f"{statistics.median(seconds):.3f}" if seconds else "",
            _describe_outcomes(row["runs"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _format(values: list[float]) -> str:
    if len(values) < 2:
        return f"{values[0]:.1f}" if values else ""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}"


def _describe_outcomes(runs: list[dict[str, Any]]) -> str:
    """How many runs there are, and how many of them ended otherwise than well."""
    others = [x["status"] for x in runs if x["status"] != "done"]
    return ", ".join([str(len(runs)), *(f"{others.count(x)} {x}" for x in dict.fromkeys(others))])


def draw_results(content: dict[str, Any], out_file: Path) -> None:
    """AP of every row with its standard deviation, and the paper's, in the order of the table.

    Args:
        out_file: picture to write; the suffix decides the format.
    """
    rows = content["rows"]
    figure = Figure(figsize=(4 + 0.65 * len(rows), 5), layout="constrained")
    axes = figure.subplots()
    for i, row in enumerate(rows):
        values = get_values(row, "AP")
        if values:
            error = statistics.stdev(values) if len(values) > 1 else 0
            axes.errorbar(
                i, statistics.mean(values), error, fmt="o", color="#0072B2", capsize=4, label="ours"
            )
            axes.plot([i] * len(values), values, ".", color="#0072B2", alpha=0.4, markersize=4)
        else:
            axes.text(
                i,
                1,
                _describe_outcomes(row["runs"]),
                rotation=90,
                ha="center",
                va="bottom",
                color="0.4",
                fontsize=8,
            )
        if "AP" in row["paper"]:
            axes.plot(
                i, row["paper"]["AP"], "D", color="#D55E00", fillstyle="none", label="paper, COCO"
            )
    axes.set_xticks(
        range(len(rows)), [row["row"] for row in rows], rotation=35, ha="right", fontsize=8
    )
    axes.set_ylabel("AP (%)")
    axes.set_ylim(bottom=0)
    axes.grid(True, axis="y", color="0.9")
    axes.set_title(
        f"Table {content['table']} on {content['base']}, mean and standard deviation over seeds",
        fontsize=10,
    )
    handles = dict(zip(*reversed(axes.get_legend_handles_labels())))
    axes.legend(handles.values(), handles.keys(), loc="lower right", fontsize=8)
    figure.savefig(out_file, dpi=110)
