"""How much of the loss the hardest negatives carry on each rung of projects/Imbalance:

    python dev/measure_hard_negatives.py

The models in output/sweep/Imbalance are measured on validation images, and the shares are written
to the results of the project.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from render_imbalance import PROJECT, RUNGS
from tqdm import tqdm

from focal_det.experiments import loss_cdf
from focal_det.experiments.records import make_origin
from focal_det.experiments.sweep_rows import load_rows, read_rows
from focal_det.files import write_json
from focal_det.inference.predictor import load_trained

RUNS = Path("output/sweep/Imbalance/runs")
ANSWERS = ("FL", "CE")
# Gamma of the two losses measured: cross entropy and the focal loss.
GAMMAS = (0.0, 2.0)
SEEDS = (1, 2, 3)
NUM_IMAGES = 40
BATCH_SIZE = 4


def measure_model(cfg: CfgNode, weights: Path) -> dict[str, float]:
    """The share of the hardest 1 % of negatives in the loss of all negatives, by gamma."""
    losses = loss_cdf.build_losses(cfg, loss_cdf.choose_stage(cfg, None), GAMMAS, ())
    batches = loss_cdf.read_batches(cfg, cfg.DATASETS.TEST[0], NUM_IMAGES, BATCH_SIZE)
    model = load_trained(cfg, str(weights)).model
    rows = loss_cdf.summarize(loss_cdf.measure_losses(cfg, model, losses, batches))
    negatives = [x for x in rows if x["side"] == "negative"]
    return {x["curve"]: x["share_of_hardest_1_percent"] for x in negatives}


def main() -> None:
    tables = read_rows(PROJECT / "rows.json")
    rungs: dict[str, Any] = {}
    for rung in tqdm(RUNGS, unit="rung"):
        cfgs = {row.name: cfg for row, cfg in load_rows(tables[rung], ()).items()}
        rungs[rung] = {}
        for answer in ANSWERS:
            runs = [f"{rung}-{answer.lower()}_seed{seed}" for seed in SEEDS]
            files = [RUNS / run / "model_final.pth" for run in runs]
            shares = [measure_model(cfgs[answer], x) for x in files]
            rungs[rung][answer] = {x: statistics.mean(y[x] for y in shares) for x in shares[0]}
    content = make_origin("python dev/measure_hard_negatives.py")
    content |= {"images": NUM_IMAGES, "seeds": SEEDS, "share_of_hardest_1_percent": rungs}
    write_json(PROJECT / "results" / "hard_negatives.json", content)
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
