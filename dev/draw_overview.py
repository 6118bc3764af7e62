"""Draw docs/overview.png: detections of the shipped digits model, and its cumulative loss.

The shares of the loss in docs/losses.md are kept beside the picture, in docs/overview.json.

    focal-det loss-cdf --config-file configs/digits/focal_retinanet_tiny.yaml \\
        --weights focal_det/model_zoo/digits_focal_retinanet_tiny.pth --output output/loss_cdf.png
    python dev/draw_overview.py output/loss_cdf.json
"""

import json
import sys
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from focal_det.data.digits import build_digits, get_digits_root
from focal_det.env import load_config
from focal_det.files import write_json
from focal_det.inference.predictor import Predictor

ROOT = Path(__file__).parent.parent
CONFIG = "digits/focal_retinanet_tiny.yaml"
WEIGHTS = ROOT / "focal_det" / "model_zoo" / "digits_focal_retinanet_tiny.pth"
IMAGE = "000060.png"
SCORE_THRESH = 0.4
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def main() -> int:
    """Draw the picture from the JSON file of `focal-det loss-cdf`."""
    content = json.loads(Path(sys.argv[1]).read_text())
    curves = content["curves"]
    figure = Figure(figsize=(9.2, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    draw_detections(left)
    draw_negatives(right, [x for x in curves if x["side"] == "negative"])
    figure.savefig(ROOT / "docs" / "overview.png", dpi=110)
    # The record needs only the figures that sum up a curve, not its thousands of points.
    for curve in curves:
        del curve["fractions"], curve["shares"]
    write_json(ROOT / "docs" / "overview.json", content)
    return 0


def draw_detections(axes: Axes) -> None:
    """Draw the detections of one validation image."""
    # Written on first use: a fresh clone has no images yet.
    build_digits("val")
    predictor = Predictor(load_config(CONFIG), str(WEIGHTS))
    image = predictor.read(get_digits_root() / "val" / "images" / IMAGE)
    (detections,) = predictor([image])
    # BGR to RGB; digits are small, and smoothing would hide that.
    axes.imshow(image[:, :, ::-1], interpolation="nearest")
    for i in range(len(detections)):
        score = float(detections.scores[i])
        if score < SCORE_THRESH:
            continue
        x0, y0, x1, y1 = detections.pred_boxes.tensor[i].tolist()
        axes.add_patch(Rectangle((x0, y0), x1 - x0, y1 - y0, fill=False, color="#E69F00", lw=1.8))
        name = predictor.class_names[int(detections.pred_classes[i])]
        label = {"facecolor": "#E69F00", "edgecolor": "none", "pad": 1.5}
        axes.text(x0, y0, f"{name}  {score:.2f}", fontsize=8, va="bottom", bbox=label)
    axes.set_title("Detections in a validation image", fontsize=11)
    axes.axis("off")


def draw_negatives(axes: Axes, curves: list[dict]) -> None:
    """Draw the cumulative loss of the negative anchors, figure 4 of the paper."""
    for curve, color in zip(curves, COLORS):
        # Curves are named "gamma 2" and so on.
        gamma = curve["curve"].removeprefix("gamma ")
        axes.plot(
            curve["fractions"], curve["shares"], color=color, label=rf"$\gamma$ = {gamma}", lw=1.8
        )
    axes.set_title(f"Loss of {curves[0]['anchors']:,} background anchors", fontsize=11)
    axes.set_xlabel("fraction of the anchors, from easy to hard")
    axes.set_ylabel("cumulative share of the loss")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.grid(True, color="0.9")
    axes.legend(loc="upper left", fontsize=9)


if __name__ == "__main__":
    sys.exit(main())
