"""Speed against accuracy, figure 2 of the paper: its table 1e, and the models of the zoo that were evaluated on COCO."""

import json
import sys
from pathlib import Path

from matplotlib.figure import Figure

from focal_det.model_zoo import read_zoo

ROOT = Path(__file__).parent.parent
OUT = ROOT / "projects" / "PaperTables" / "speed_accuracy.png"


def read_points() -> dict[str, list[tuple[float, float, str]]]:
    """By series: milliseconds per image, AP, and the name of each point."""
    rows = json.loads((ROOT / "configs" / "PaperTables" / "rows.json").read_text())
    points: dict[str, list[tuple[float, float, str]]] = {}
    for row in rows:
        if row["table"] == "1e":
            series = f"paper, R{row['depth']} (M40)"
            points.setdefault(series, []).append(
                (row["paper"]["ms"], row["paper"]["AP"], str(row["scale"]))
            )
    for config, entry in read_zoo().items():
        if entry["evaluated_on"] == "coco_2017_val":
            name = config.split("focal_retinanet_")[-1].removesuffix(".yaml").replace("_", " ")
            series = f"{entry['origin']} ({entry['device']})"
            points.setdefault(series, []).append(
                (1000 * entry["seconds_per_image"], entry["figures"]["AP"], name)
            )
    return points


def main(out_file: Path = OUT) -> int:
    """Draw both series."""
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for (series, points), color in zip(
        read_points().items(), ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
    ):
        is_curve = series.startswith("paper")
        axes.plot(
            *zip(*(x[:2] for x in points)), "o-" if is_curve else "s", color=color, label=series
        )
        for ms, ap, name in points:
            axes.annotate(
                name, (ms, ap), xytext=(5, -10), textcoords="offset points", fontsize=7, color=color
            )
    axes.set_xlabel("inference time of an image (ms), on the device of the series")
    axes.set_ylabel("COCO AP (%)")
    axes.set_title(
        "Speed against accuracy; numbers at the paper's points are image sizes in pixels",
        fontsize=9,
    )
    axes.set_xlim(0, 215)
    axes.grid(True, color="0.9")
    axes.legend(loc="lower right", fontsize=8)
    figure.savefig(out_file, dpi=120)
    return 0


if __name__ == "__main__":
    sys.exit(main())
