"""Render the tables of the README, docs and project pages from records: `make readme`.

With `--check`, say which pages are not up to date, and write nothing.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from render_imbalance import (
    RUNGS,
    SEARCHES,
    render_answers,
    render_hard_negatives,
    render_rungs,
    render_search,
)
from render_losses import render_losses
from render_speed import render_headlines, render_speed, render_watch
from render_two_stage import render_two_stage

from focal_det.experiments.records import get_figure
from focal_det.model_zoo import read_zoo
from focal_det.report.sweep_results import make_results_table

ROOT = Path(__file__).parent.parent
METRICS = ("AP", "AP50", "AP75")


def render_results(records: Sequence[Path], page: Path) -> str:
    """One row per record: its figures in percent, how long it took and where."""
    lines = [
        "| config | evaluated on | AP | AP50 | AP75 | minutes | device | record |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for file in records:
        record = json.loads(file.read_text())
        cells = [
            f"`{record['config_file']}`",
            record["dataset"],
            *(f"{get_figure(record, name):.1f}" for name in METRICS),
            str(record["minutes"]),
            f"{record['device']}, {record['threads']} threads",
            f"[json]({os.path.relpath(file, page.parent)})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def render_accuracy(records: Sequence[Path], zoo: dict) -> str:
    """One row per model: trained with focal_det, or by Detectron2 and loaded into ours."""
    lines = ["| config | evaluated on | AP | AP50 | trained |", "|---" * 5 + "|"]
    for file in records:
        record = json.loads(file.read_text())
        cells = [f"`{Path(record['config_file']).stem}`", record["dataset"]]
        cells += [f"{get_figure(record, name):.1f}" for name in ("AP", "AP50")]
        # Without the instruction set that follows the name of a CPU: docs/results.md has it.
        device = record["device"].split(",")[0]
        cells.append(f"with focal_det, {record['minutes']} min, {device}")
        lines.append(f"| {' | '.join(cells)} |")
    for config, entry in zoo.items():
        if entry["origin"] == "Detectron2 zoo":
            cells = [f"`{Path(config).stem}`", entry["evaluated_on"]]
            cells += [f"{entry['figures']['AP']:.1f}", "", "Detectron2's model zoo"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def render_classes(records: Sequence[Path], page: Path) -> str:
    """One row per record: average precision of each class, with COCO metrics."""
    lines = []
    for file in records:
        record = json.loads(file.read_text())
        keys = [x.partition("bbox/AP-") for x in record["figures"]]
        # Each class once, also where several data sets were evaluated.
        classes = list(dict.fromkeys(name for _, is_of_class, name in keys if is_of_class))
        if not lines:
            head = [f"AP {x}" for x in classes]
            lines = [f"| record | {' | '.join(head)} |", "|---|" + "---|" * len(classes)]
        cells = [f"[{file.stem}]({os.path.relpath(file, page.parent)})"]
        cells += [f"{get_figure(record, f'AP-{x}'):.1f}" for x in classes]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def render_zoo(zoo: dict) -> str:
    """One row per trained model."""
    lines = [
        "| config | AP | AP50 | AP75 | evaluated on | s/image | MB of GPU memory | origin "
        "| sha256 |",
        "|---" * 9 + "|",
    ]
    for config, entry in zoo.items():
        figures = [entry["figures"][x] for x in METRICS]
        memory = ""
        if entry["memory_gb"] is not None:
            memory = f"{1000 * entry['memory_gb']:.0f}"
        cells = [
            f"`{config}`",
            *("" if x is None else f"{x:.1f}" for x in figures),
            entry["evaluated_on"],
            str(entry["seconds_per_image"]),
            memory,
            entry["origin"],
            (entry["sha256"] or "")[:8],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def render_faults(folder: Path) -> str:
    """One row per fault: what Detectron2 and focal_det do; then the versions tested with."""
    rows = {}
    hosts = []
    soaks = []
    for file in sorted(folder.glob("*.json")):  # named after the Detectron2 version
        content = json.loads(file.read_text())
        rows.update({x["row"]: x for x in content["rows"]})
        hosts.append(f"{file.stem.replace('_', ' ')} ({len(content['rows'])} rows)")
        if "soak" in content:
            soaks.append(content["soak"])
    lines = ["| # | fault | Detectron2 | focal_det |", "|---|---|---|---|"]
    for number, row in sorted(rows.items()):
        lines.append(f"| {number} | {row['fault']} | {row['detectron2']} | {row['focal_det']} |")
    lines += ["", f"Passed with Detectron2 {' and '.join(hosts)}."]
    return "\n".join([*lines, *(_describe_soak(x) for x in soaks)])


def _describe_soak(soak: dict[str, Any]) -> str:
    """A paragraph on the run that was interrupted at random."""
    kinds = {
        "signal": "SIGTERM, SIGINT or SIGUSR1",
        "kill": "SIGKILL",
        "rank": "SIGKILL to one of its processes",
        "worker": "SIGKILL to a data worker",
    }
    counts = ", ".join(f"{n} x {kinds[k]}" for k, n in sorted(soak["interruptions"].items()))
    return (
        f"\nA run of two processes and {soak['iterations']} iterations was interrupted "
        f"{sum(soak['interruptions'].values())} times at random ({counts}); "
        f"{soak['tensors_that_differ']} tensors differ from those of the uninterrupted run."
    )


def find_tables(page: Path) -> dict[str, Callable[[], str]]:
    """What renders each table, by the name in its comments `<!-- name -->` ... `<!-- /name -->`.

    On a project's page, "results", "classes" and "accuracy" cover the records of that project, on
    other pages those of all projects; "accuracy" also covers the model zoo.
    """
    is_project = page.parent.parent == ROOT / "projects"
    records = sorted(page.parent.glob("records/*.json"))
    if not is_project:
        records = sorted(ROOT.glob("projects/*/records/*.json"))
    losses = sorted((ROOT / "projects" / "Losses" / "results").glob("digits_*.json"))
    benchmarks = sorted((ROOT / "benchmarks").glob("*.json"))
    tables = {
        "results": lambda: render_results(records, page),
        "accuracy": lambda: render_accuracy(records, read_zoo()),
        "classes": lambda: render_classes(records, page),
        "losses": lambda: render_losses(losses),
        "zoo": lambda: render_zoo(read_zoo()),
        "speed": lambda: render_speed(benchmarks, page),
        "headlines": lambda: render_headlines(benchmarks),
        "watch": lambda: render_watch(ROOT / "benchmarks" / "watch" / "cpu.json"),
        "faults": lambda: render_faults(ROOT / "tests" / "faults" / "records"),
    }
    tables["imbalance rungs"] = render_rungs
    tables["imbalance hard negatives"] = render_hard_negatives
    for table in SEARCHES:
        tables[f"imbalance {table}"] = lambda table=table: render_search(table)
    for table in RUNGS:
        tables[f"imbalance {table}"] = lambda table=table: render_answers(table)
    for table in ("digits", "bccd"):
        tables[f"two stage {table}"] = lambda table=table: render_two_stage(table)
    # Such as "digits 1b".
    for file in ROOT.glob("projects/PaperTables/results/*.json"):
        content = json.loads(file.read_text())
        tables[file.stem.replace("_", " ")] = lambda x=content: make_results_table(x)
    return tables


def render(page: Path) -> str:
    """The text of a page with its tables filled in."""
    text = page.read_text()
    for name, make_table in find_tables(page).items():
        pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        found = pattern.search(text)
        if found:
            head, tail = found.groups()
            text = f"{text[: found.start()]}{head}{make_table()}\n{tail}{text[found.end() :]}"
    return text


def main() -> int:
    """Render all pages; with `--check`, return 1 if one is not up to date."""
    is_check = "--check" in sys.argv
    pages = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))]
    pages += sorted(ROOT.glob("projects/*/README.md"))
    status = 0
    for page in pages:
        new = render(page)
        if new == page.read_text():
            continue
        name = page.relative_to(ROOT)
        if is_check:
            print(f"{name}: not up to date, run `make readme`")
            status = 1
        else:
            print(f"{name}: rendered")
            page.write_text(new)
    return status


if __name__ == "__main__":
    sys.exit(main())
