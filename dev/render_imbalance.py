"""The tables of projects/Imbalance: answers to the imbalance of objects and background.

A standard error is that of a mean over seeds, with the spread pooled over all rows of a table. The
arrows mark differences from the focal loss of more than two standard errors of the difference.
"""

import json
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from render_losses import compare, pool_spread

PROJECT = Path(__file__).parent.parent / "projects" / "Imbalance"
BASELINE = "FL"
METRICS = ("AP", "AP50", "AP75")
RUNGS = ("ten_60", "ten_500", "ten_4000", "60", "500", "4000")
SEARCHES = ("ten_search", "answers_search", "search")


def read_results(table: str) -> dict[str, Any]:
    return json.loads((PROJECT / "results" / f"{table}.json").read_text())


def get_metrics(row: Mapping[str, Any], metric: str) -> list[float]:
    """A COCO metric of each finished run of a row, in percent."""
    return [x["figures"][f"bbox/{metric}"] for x in row["runs"] if "figures" in x]


def render_answers(table: str) -> str:
    """One row per answer: mean ± standard error over seeds, and what a step costs."""
    rows = read_results(table)["rows"]
    steps = read_results(f"{table}_steps")["rows"]
    lines = ["| answer | AP | AP50 | AP75 | s/it | iterations | seeds |", "|---" * 7 + "|"]
    columns = {x: {row["row"]: get_metrics(row, x) for row in rows} for x in METRICS}
    for row in rows:
        name = row["row"]
        cells = [name]
        for column in columns.values():
            spread = pool_spread([x for x in column.values() if x])
            cells.append(compare(column[name], column[BASELINE], spread) if column[name] else "")
        cells.append(f"{steps[name]['seconds']:.2f}")
        cells += [str(row["runs"][0]["iterations"]), str(len(columns["AP"][name]))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def render_rungs() -> str:
    """One row per rung: its config, and how unbalanced its anchors are."""
    lines = ["| rung | classes | negatives per positive | positives | anchors |", "|---" * 5 + "|"]
    for name, rung in read_results("rungs")["rungs"].items():
        cells = [f"[{name}](configs/{name}.yaml)", str(rung["classes"])]
        cells += [f"{rung['negatives_per_positive']:,.0f}", f"{rung['positives_per_image']:.1f}"]
        cells.append(f"{rung['anchors_per_image']:,.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def render_hard_negatives() -> str:
    """One row per rung and trained model: what the hardest negatives carry of two losses."""
    lines = ["| rung | trained with | of cross entropy | of the focal loss |", "|---" * 4 + "|"]
    rungs = read_results("hard_negatives")["share_of_hardest_1_percent"]
    for rung, answers in rungs.items():
        for answer, shares in answers.items():
            cells = [f"{100 * shares[f'gamma {gamma}']:.0f} %" for gamma in (0, 2)]
            lines.append(f"| {rung} | {answer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def render_search(table: str) -> str:
    """One row per setting that was tried, each with a single run."""
    lines = ["| setting | AP | AP50 | AP75 |", "|---" * 4 + "|"]
    for row in read_results(table)["rows"]:
        figures = [statistics.mean(get_metrics(row, x)) for x in METRICS]
        lines.append(f"| {row['row']} | {' | '.join(f'{x:.1f}' for x in figures)} |")
    return "\n".join(lines)
