"""The table of projects/Losses: every recorded loss on balanced and on long-tailed digits.

A standard error is that of a mean over seeds, with the spread pooled over all rows of a data set:
two or three runs of one row say little about it. A difference from the focal loss is marked if it
exceeds two standard errors of the difference.
"""

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

# Thirds of the classes by their frequency in digits_longtail_train, which falls from class 0 to 9.
THIRDS = {"frequent": "012", "common": "3456", "rare": "789"}
COLUMNS = {"digits_train": ("AP", "AP50"), "digits_longtail_train": ("AP", "AP50", *THIRDS)}
TITLES = {"digits_train": "digits", "digits_longtail_train": "long-tailed"}
BASELINE = "focal_loss"

Values = dict[str, float]


def render_losses(files: Sequence[Path]) -> str:
    """One row per loss that has runs: mean ± standard error over seeds, seconds per iteration.

    Args:
        files: results of `focal-det sweep`, one per data set, which its "table" names.
    """
    runs = read_runs(files)
    of_dataset = {x: {k: v for k, v in runs.items() if k[1] == x} for x in COLUMNS}
    head = ["loss"]
    for dataset, columns in COLUMNS.items():
        head += [f"{TITLES[dataset]} {column}" for column in columns]
    head += ["s/it", "seeds"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for name in sort_names(runs):
        cells = [f"`{name}`"]
        for dataset, columns in COLUMNS.items():
            cells += [render_cell(name, of_dataset[dataset], dataset, x) for x in columns]
        of_name = [values for (key, _), values in runs.items() if key == name]
        # Over both data sets, whose images have the same size.
        seconds = [run["s/it"] for values in of_name for run in values]
        cells += [f"{statistics.median(seconds):.3f}", str(max(map(len, of_name)))]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def read_runs(files: Sequence[Path]) -> dict[tuple[str, str], list[Values]]:
    """The values of all finished runs by loss and data set; losses without any are left out."""
    runs: dict[tuple[str, str], list[Values]] = defaultdict(list)
    for file in files:
        content = json.loads(file.read_text())
        for row in content["rows"]:
            for run in row["runs"]:
                if run["status"] == "done":
                    runs[row["row"], content["table"]].append(get_values(run))
    return runs


def sort_names(runs: dict[tuple[str, str], list[Values]]) -> list[str]:
    """The baseline first, then by name; losses with runs on long-tailed digits alone come last."""
    names = {name for name, _ in runs}
    # Their cells in the first two columns, of balanced digits, are empty.
    return sorted(names, key=lambda x: (x != BASELINE, (x, "digits_train") not in runs, x))


def get_values(run: dict) -> Values:
    """AP, AP50, the mean AP of each third (percent) and seconds per iteration of one run."""
    figures = run["figures"]
    values = {name: figures[f"bbox/{name}"] for name in ("AP", "AP50")}
    for third, ids in THIRDS.items():
        values[third] = statistics.mean(figures[f"bbox/AP-{i}"] for i in ids)
    values["s/it"] = run["seconds_per_iter"]
    return values


def render_cell(
    name: str, runs: dict[tuple[str, str], list[Values]], dataset: str, column: str
) -> str:
    """A loss's cell in a column of a data set; empty without runs."""
    groups = {key: [x[column] for x in values] for key, values in runs.items()}
    if (name, dataset) not in groups:
        return ""
    values = groups[name, dataset]
    return compare(values, groups.get((BASELINE, dataset)), pool_spread(list(groups.values())))


def pool_spread(groups: Sequence[Sequence[float]]) -> float:
    """Standard deviation of a run, pooled over groups of runs that differ in their seed alone."""
    # One run says nothing about spread.
    repeated = [x for x in groups if len(x) > 1]
    if not repeated:
        return math.nan
    squares = sum((len(x) - 1) * statistics.variance(x) for x in repeated)
    return math.sqrt(squares / sum(len(x) - 1 for x in repeated))


def compare(values: Sequence[float], baseline: Optional[Sequence[float]], spread: float) -> str:
    """The mean, its standard error, and an arrow if it is over two errors from the baseline."""
    mean = statistics.mean(values)
    text = f"{mean:.1f} ± {spread / math.sqrt(len(values)):.1f}"
    if not baseline:
        return text
    difference = mean - statistics.mean(baseline)
    error = spread * math.sqrt(1 / len(values) + 1 / len(baseline))
    if difference > 2 * error:
        return f"{text} ▲"
    if difference < -2 * error:
        return f"{text} ▼"
    return text
