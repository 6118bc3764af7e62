"""Write focal_det/imbalance/evidence.json, from which `focal-det check` gives advice:

    python dev/render_evidence.py

With `--check`, say whether it is up to date, and write nothing.
"""

import json
import math
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from render_losses import pool_spread

from focal_det.env import load_config
from focal_det.files import write_json
from focal_det.imbalance.advice import CLASSES, FREQUENCIES, NEGATIVES
from focal_det.modeling.build import get_value

ROOT = Path(__file__).parent.parent
EVIDENCE = ROOT / "focal_det" / "imbalance" / "evidence.json"
IMBALANCE = ROOT / "projects" / "Imbalance"
LONG_TAIL = ROOT / "projects" / "Losses" / "results" / "digits_longtail_train.json"
LONG_TAIL_RATIO = 100.0  # of digits_longtail_train
# What tells answers apart, beside the arguments of their losses.
LOSS_KEYS = (
    "MODEL.FOCAL_DET.CLS_LOSS.NAME",
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA",
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA",
    "MODEL.RETINANET.PRIOR_PROB",
)
ARGS = "MODEL.FOCAL_DET.CLS_LOSS.ARGS."
# Rows of the long tail that differ in their sampling alone.
SAMPLER = "DATALOADER.SAMPLER_TRAIN"
SAMPLERS = {
    "focal_loss": {SAMPLER: "TrainingSampler"},
    "repeat_factor": {
        SAMPLER: "RepeatFactorTrainingSampler",
        "DATALOADER.REPEAT_THRESHOLD": 0.3,
    },
}


def make_evidence() -> dict[str, list[dict[str, Any]]]:
    """Recorded comparisons by topic, see `focal_det.imbalance.advice`."""
    rungs = read_json(IMBALANCE / "results" / "rungs.json")["rungs"]
    losses = []
    for rung, measured in rungs.items():
        file = IMBALANCE / "results" / f"{rung}.json"
        sizes = {
            NEGATIVES: round(measured["negatives_per_positive"], 1),
            CLASSES: measured["classes"],
        }
        losses.append(make_comparison(file, sizes, read_losses(file)))
    long_tail = make_comparison(LONG_TAIL, {FREQUENCIES: LONG_TAIL_RATIO}, SAMPLERS)
    return {"loss": losses, "sampling": [long_tail]}


def read_losses(file: Path) -> dict[str, dict[str, Any]]:
    """What selects the answer of each row of a rung; rows of other detectors are left out."""
    cfg = load_config(IMBALANCE / "configs" / f"{file.stem}.yaml")
    defaults = {key: get_value(cfg, key) for key in LOSS_KEYS}
    answers = {}
    for row in read_json(file)["rows"]:
        if row["runs"][0]["config_file"].endswith("two_stage.yaml"):
            continue
        keys = {k: v for k, v in row["overrides"].items() if k in LOSS_KEYS or k.startswith(ARGS)}
        answers[row["row"]] = {**defaults, **keys}
    return answers


def make_comparison(
    file: Path, sizes: Mapping[str, float], answers: Mapping[str, Mapping[str, Any]]
) -> dict[str, Any]:
    """AP of the rows of a record, with standard errors from the spread of all these rows."""
    rows = {x["row"]: x["runs"] for x in read_json(file)["rows"]}
    values = {x: [run["figures"]["bbox/AP"] for run in rows[x]] for x in answers}
    spread = pool_spread(list(values.values()))
    return {
        "sizes": dict(sizes),
        "record": str(file.relative_to(ROOT)),
        "answers": [
            {
                "name": describe_answer(name, answers[name]),
                "values": dict(answers[name]),
                "mean": round(statistics.mean(of_row), 2),
                "error": round(spread / math.sqrt(len(of_row)), 2),
            }
            for name, of_row in values.items()
        ],
    }


def describe_answer(name: str, values: Mapping[str, Any]) -> str:
    """The row's name and its numbers, such as "FL, gamma 2, alpha 0.25"."""
    is_focal = values.get(LOSS_KEYS[0]) == "FocalLoss"
    parts = [values.get(SAMPLER, name)]
    for key, value in values.items():
        leaf = key.rpartition(".")[-1].lower().removeprefix("focal_loss_")
        # Gamma and alpha are not those of other losses.
        if isinstance(value, (int, float)) and (is_focal or key not in LOSS_KEYS):
            parts.append(f"{leaf} {value:g}")
    return ", ".join(parts)


def read_json(file: Path) -> Any:
    return json.loads(file.read_text())


def main(args: Sequence[str]) -> int:
    evidence = make_evidence()
    if "--check" not in args:
        write_json(EVIDENCE, evidence)
    elif read_json(EVIDENCE) != evidence:
        print(f"{EVIDENCE.relative_to(ROOT)}: not up to date, run `make readme`")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
