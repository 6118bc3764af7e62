"""Speed against accuracy, as in the paper's figure 2: its table 1e, and the zoo models on COCO."""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

from focal_det.model_zoo import read_zoo
from focal_det.report.style import COLORS

ROOT = Path(__file__).parent.parent
OUT = ROOT / "projects" / "PaperTables" / "speed_accuracy.png"

Point = tuple[float, float, str]


def read_points() -> dict[str, list[Point]]:
    """By series: milliseconds per image, AP, and the name of each point."""
    points: dict[str, list[Point]] = {}
    content = json.loads((ROOT / "configs" / "PaperTables" / "rows.json").read_text())
    for row in content["rows"]:
        if row["table"] == "1e":
            point = (row["paper"]["ms"], row["paper"]["AP"], str(row["scale"]))
            points.setdefault(f"paper, R{row['depth']} (M40)", []).append(point)
    for config, entry in read_zoo().items():
        # AP on other data sets cannot be compared.
        if entry["evaluated_on"] == "coco_2017_val":
            name = config.split("focal_retinanet_")[-1].removesuffix(".yaml").replace("_", " ")
            point = (1000 * entry["seconds_per_image"], entry["figures"]["AP"], name)
            points.setdefault(f"{entry['origin']} ({entry['device']})", []).append(point)
    return points


def make_figure() -> Figure:
    """A line per series of the paper, and squares for the models of the zoo."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for (series, points), color in zip(read_points().items(), COLORS):
        milliseconds, precisions, names = zip(*points)
        marker = "o-" if series.startswith("paper") else "s"
        axes.plot(milliseconds, precisions, marker, color=color, label=series)
        style = {"textcoords": "offset points", "fontsize": 7, "color": color}
        for x, y, name in zip(milliseconds, precisions, names):
            axes.annotate(name, (x, y), xytext=(5, -10), **style)
    axes.set_xlabel("inference time of an image (ms), on the device of the series")
    axes.set_ylabel("COCO AP (%)")
    title = "Speed against accuracy; numbers at the paper's points are image sizes in pixels"
    axes.set_title(title, fontsize=9)
    # From 0, so that distances show ratios of times; the paper's slowest point is at 198 ms.
    axes.set_xlim(0, 215)
    axes.grid(True, color="0.9")
    axes.legend(loc="lower right", fontsize=8)
    return figure


def main(out_file: Path = OUT) -> int:
    make_figure().savefig(out_file, dpi=120)
    return 0


if __name__ == "__main__":
    sys.exit(main())
