"""The tables of projects/TwoStage: detectors with different answers to imbalance, in equal time.

The arrows compare with Detectron2's own Faster R-CNN.
"""

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parent.parent / "projects" / "TwoStage"
BASELINE = "faster_rcnn"
METRICS = ("AP", "AP50", "APs")
RECALLS = ("AR@100", "AR@1000")


def render_two_stage(table: str) -> str:
    """One row per detector: mean ± standard error over seeds, and what a step costs.

    Args:
        table: "digits" or "bccd".
    """
    rows = _read(table)["rows"]
    recall = _read(f"{table}_recall")["runs"]
    steps = _read(f"{table}_steps")["rows"]
    columns = {x: {row["row"]: get_metrics(row, x) for row in rows} for x in METRICS}
    for name in RECALLS:
        columns[name] = {row["row"]: get_recalls(row, table, recall, name) for row in rows}
    head = ["config", *columns, "s/it", "MB", "iterations", "seeds"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in rows:
        name = row["row"]
        cells = [f"[{name}](configs/{table}/{name}.yaml)"]
        cells += [render_cell(name, column) for column in columns.values()]
        cells += [f"{steps[name]['seconds']:.2f}", f"{steps[name]['peak_bytes'] / 1e6:.0f}"]
        cells += [str(row["runs"][0]["iterations"]), str(len(columns["AP"][name]))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _read(name: str) -> dict[str, Any]:
    return json.loads((PROJECT / "results" / f"{name}.json").read_text())


def get_metrics(row: Mapping[str, Any], metric: str) -> list[float]:
    """A COCO metric of each run of a row, in percent."""
    return [x["figures"][f"bbox/{metric}"] for x in row["runs"] if "figures" in x]


def get_recalls(
    row: Mapping[str, Any], table: str, recall: Mapping[str, Mapping[str, float]], name: str
) -> list[float]:
    """Recall of the proposals of each run of a row; empty for detectors without proposals."""
    runs = [f"{table}-{row['row']}_seed{x['seed']}" for x in row["runs"]]
    return [recall[x][name] for x in runs if x in recall]


def render_cell(name: str, column: Mapping[str, Sequence[float]]) -> str:
    """Mean, its standard error, and an arrow if it is two errors from the baseline.

    Empty without figures.
    """
    values = column[name]
    if not values:
        return ""
    mean = statistics.mean(values)
    error = get_error(values)
    text = f"{mean:.1f} ± {error:.1f}"
    difference = mean - statistics.mean(column[BASELINE])
    # Each row by its own spread: some rows spread ten times as much as others.
    if abs(difference) <= 2 * math.hypot(error, get_error(column[BASELINE])):
        return text
    return f"{text} {'▲' if difference > 0 else '▼'}"


def get_error(values: Sequence[float]) -> float:
    """Standard error of a mean."""
    return statistics.stdev(values) / math.sqrt(len(values))
