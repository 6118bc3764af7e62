"""The table of projects/Losses: every loss on balanced and on long-tailed digits, from the records of all runs.

A standard error is that of a mean over seeds, with the spread pooled over all rows of a data set (two or three runs of one row say
little about it). A difference to the focal loss is marked where it exceeds two standard errors of the difference.
"""

import json
import math
import statistics
from collections import defaultdict
from pathlib import Path

# Thirds of the classes by their frequency in digits_longtail_train, which falls from 0 to 9.
THIRDS = {"frequent": "012", "common": "3456", "rare": "789"}
COLUMNS = {"digits_train": ("AP", "AP50"), "digits_longtail_train": ("AP", "AP50", *THIRDS)}
BASELINE = "focal_loss"


def get_values(record: dict) -> dict[str, float]:
    """AP, AP50, the mean AP of each third (percent) and seconds per iteration of one run."""
    figures = record["figures"]
    values = {name: figures[f"bbox/{name}"] for name in ("AP", "AP50")}
    values.update(
        {
            third: statistics.mean(figures[f"bbox/AP-{i}"] for i in ids)
            for third, ids in THIRDS.items()
        }
    )
    # Windows of 20 iterations; the lower quartile leaves out those in which something else ran.
    times = sorted(line["time"] for line in record["metrics"] if "time" in line)
    return {**values, "s/it": times[len(times) // 4]}


def pool_spread(groups: list[list[float]]) -> float:
    """Standard deviation of a single run, pooled over groups of runs that differ in their seed only."""
    degrees = sum(len(x) - 1 for x in groups)
    return (
        math.sqrt(
            sum((len(x) - 1) * statistics.variance(x) for x in groups if len(x) > 1) / degrees
        )
        if degrees
        else math.nan
    )


def compare(values: list[float], baseline: list[float], spread: float) -> str:
    """The mean, its standard error, and an arrow where it differs from the baseline by more than two standard errors."""
    mean = statistics.mean(values)
    difference = mean - statistics.mean(baseline)
    error = spread * math.sqrt(1 / len(values) + 1 / len(baseline))
    arrow = (" ▲" if difference > 0 else " ▼") if abs(difference) > 2 * error else ""
    return f"{mean:.1f} ± {spread / math.sqrt(len(values)):.1f}{arrow}"


def render_losses(files: list[Path]) -> str:
    """One row per config: mean ± standard error over seeds on either data set, and seconds per iteration."""
    runs: dict[tuple[str, str], list[dict[str, float]]] = defaultdict(list)
    for file in files:
        record = json.loads(file.read_text())
        runs[Path(record["config_file"]).stem, record["trained_on"]].append(get_values(record))
    names = sorted(
        {name for name, _ in runs},
        key=lambda x: (x != BASELINE, (x, "digits_train") not in runs, x),
    )
    head = ["loss", *(f"digits {x}" for x in COLUMNS["digits_train"])]
    head += [f"long-tailed {x}" for x in COLUMNS["digits_longtail_train"]]
    lines = [f"| {' | '.join([*head, 's/it', 'seeds'])} |", "|---|" + "---|" * (len(head) + 1)]
    for name in names:
        cells = [f"`{name}`"]
        for dataset, columns in COLUMNS.items():
            for column in columns:
                groups = {
                    key: [x[column] for x in values]
                    for key, values in runs.items()
                    if key[1] == dataset
                }
                spread = pool_spread(list(groups.values()))
                values = groups.get((name, dataset))
                cells.append(compare(values, groups[BASELINE, dataset], spread) if values else "")
        of_name = [x for (key, _), values in runs.items() if key == name for x in values]
        num_seeds = max(len(values) for (key, _), values in runs.items() if key == name)
        cells += [f"{statistics.median(x['s/it'] for x in of_name):.3f}", str(num_seeds)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
