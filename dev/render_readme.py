"""Render the tables of the README and the project pages from the records of runs; `--check` only says if they are current."""

import json
import re
import sys
from pathlib import Path

from render_losses import render_losses
from render_speed import render_headlines, render_speed, render_watch

from focal_det.experiments.records import get_figure
from focal_det.model_zoo import read_zoo
from focal_det.report.sweep_results import make_markdown

ROOT = Path(__file__).parent.parent
METRICS = ("AP", "AP50", "AP75")


def render_results(records: list[Path], page: Path) -> str:
    """One row per record: its figures in percent, how long it took and where."""
    lines = [
        "| config | evaluated on | AP | AP50 | AP75 | minutes | device | record |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for file in records:
        record = json.loads(file.read_text())
        cells = [f"`{record['config_file']}`", record["dataset"]]
        cells += [f"{get_figure(record, name):.1f}" for name in ("AP", "AP50", "AP75")]
        cells += [
            str(record["minutes"]),
            record["device"],
            f"[json]({file.relative_to(page.parent)})",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def render_classes(records: list[Path], page: Path) -> str:
    """One row per record: average precision of each class, with COCO metrics."""
    lines = []
    for file in records:
        record = json.loads(file.read_text())
        classes = list(
            dict.fromkeys(x.split("bbox/AP-")[1] for x in record["figures"] if "bbox/AP-" in x)
        )
        if not lines:
            lines = [
                f"| record | {' | '.join(f'AP {x}' for x in classes)} |",
                "|---|" + "---|" * len(classes),
            ]
        cells = [
            f"[{file.stem}]({file.relative_to(page.parent)})",
            *(f"{get_figure(record, f'AP-{x}'):.1f}" for x in classes),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def render_zoo(zoo: dict) -> str:
    """One row per trained model."""
    lines = [
        "| config | AP | AP50 | AP75 | evaluated on | s/image | MB of GPU memory | origin | sha256 |",
        "|---" * 9 + "|",
    ]
    for config, entry in zoo.items():
        cells = [
            f"`{config}`",
            *("" if entry["figures"][x] is None else f"{entry['figures'][x]:.1f}" for x in METRICS),
        ]
        memory = "" if entry["memory_gb"] is None else f"{1000 * entry['memory_gb']:.0f}"
        cells += [
            entry["evaluated_on"],
            str(entry["seconds_per_image"]),
            memory,
            entry["origin"],
            (entry["sha256"] or "")[:8],
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def render_faults(folder: Path) -> str:
    """One row per fault: what Detectron2 does, and what focal_det does; below, with which Detectron2 their tests passed."""
    lines = ["| # | fault | Detectron2 | focal_det |", "|---|---|---|---|"]
    rows, hosts = {}, []
    for file in sorted(folder.glob("*.json")):  # named by the Detectron2
        content = json.loads(file.read_text())["rows"]
        rows.update({x["row"]: x for x in content})
        hosts.append(f"{file.stem.replace('_', ' ')} ({len(content)} rows)")
    lines += [
        f"| {n} | {x['fault']} | {x['detectron2']} | {x['focal_det']} |"
        for n, x in sorted(rows.items())
    ]
    return "\n".join([*lines, "", f"Passed with Detectron2 {' and '.join(hosts)}."])


def render(page: Path) -> str:
    """The page with its generated parts filled in.

    `<!-- results -->` and `<!-- classes -->` are of the records of the page's own folder, `<!-- losses -->` of projects/Losses,
    `<!-- zoo -->` of zoo.json, `<!-- speed -->` and `<!-- headlines -->` of benchmarks/,
    `<!-- digits 1b -->` of projects/PaperTables/results.
    """
    text = page.read_text()
    records = sorted(
        page.parent.glob("records/*.json" if page.parent != ROOT else "projects/*/records/*.json")
    )
    comparison = sorted((ROOT / "projects" / "Losses" / "records").glob("*/*.json"))
    comparison = [
        x for x in comparison if "retinanet" not in x.stem
    ]  # what all runs start from is none of them
    benchmarks = sorted((ROOT / "benchmarks").glob("*.json"))
    tables = {
        "results": lambda: render_results(records, page),
        "classes": lambda: render_classes(records, page),
        "losses": lambda: render_losses(comparison),
        "zoo": lambda: render_zoo(read_zoo()),
        "speed": lambda: render_speed(benchmarks, page),
        "headlines": lambda: render_headlines(benchmarks),
        "watch": lambda: render_watch(ROOT / "benchmarks" / "watch" / "cpu.json"),
        "faults": lambda: render_faults(ROOT / "tests" / "faults" / "records"),
    }
    for file in ROOT.glob("projects/PaperTables/results/*.json"):
        tables[file.stem.replace("_", " ")] = lambda file=file: make_markdown(
            json.loads(file.read_text())
        )
    for name, table in tables.items():
        pattern = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = pattern.sub(lambda m, table=table: f"{m.group(1)}{table()}\n{m.group(2)}", text)
    return text


def main() -> int:
    """Render all pages, or with `--check` return 1 if one is not as it would be rendered."""
    status = 0
    for page in (
        ROOT / "README.md",
        *sorted(ROOT.glob("docs/*.md")),
        *sorted(ROOT.glob("projects/*/README.md")),
    ):
        new = render(page)
        if new != page.read_text():
            print(
                f"{page.relative_to(ROOT)}: "
                + ("not up to date, run `make readme`" if "--check" in sys.argv else "rendered")
            )
            status = int("--check" in sys.argv)
            if not status:
                page.write_text(new)
    return status


if __name__ == "__main__":
    sys.exit(main())
