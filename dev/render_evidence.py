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

from detectron2.config import CfgNode
from render_losses import pool_spread

from focal_det.data.digits import DIGITS_CLASSES
from focal_det.experiments.sweep_rows import load_rows, read_rows
from focal_det.files import write_json
from focal_det.imbalance.advice import CLASSES, FREQUENCIES, NEGATIVES
from focal_det.modeling.build import get_value, read_settings

ROOT = Path(__file__).parent.parent
EVIDENCE = ROOT / "focal_det" / "imbalance" / "evidence.json"
PROJECTS = ROOT / "projects"
LONG_TAIL = PROJECTS / "Losses" / "results" / "digits_longtail_train.json"
LONG_TAIL_RATIO = 100.0  # of digits_longtail_train
# What tells answers apart, beside the arguments of their losses.
LOSS_KEYS = (
    "MODEL.FOCAL_DET.CLS_LOSS.NAME",
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA",
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA",
    "MODEL.RETINANET.PRIOR_PROB",
    "MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS",
    "MODEL.FOCAL_DET.NORMALIZER.NAME",
)
USUAL_PRIOR = 0.01
ARGS = "MODEL.FOCAL_DET.CLS_LOSS.ARGS"
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
    measured = read_json(PROJECTS / "Imbalance" / "results" / "rungs.json")
    losses = [
        make_loss_comparison(PROJECTS / project, table, sizes)
        for project, tables in (("Imbalance", "rungs"), ("TwoStage", "two_stage"))
        for table, sizes in measured[tables].items()
    ]
    sizes = {FREQUENCIES: LONG_TAIL_RATIO, CLASSES: len(DIGITS_CLASSES)}
    # Both have the rate of their common base.
    long_tail = make_comparison(LONG_TAIL, sizes, SAMPLERS, dict.fromkeys(SAMPLERS, 1.0))
    return {"loss": losses, "sampling": [long_tail]}


def make_loss_comparison(project: Path, table: str, sizes: Mapping[str, Any]) -> dict[str, Any]:
    """The RetinaNets of a table of a project's rows.

    Args:
        sizes: of its training set, see dev/measure_rungs.py.
    """
    rows = load_rows(read_rows(project / "rows.json")[table], ())
    answers = {row.name: get_loss(cfg) for row, cfg in rows.items() if read_settings(cfg).is_dense}
    told = {NEGATIVES: round(sizes["negatives_per_positive"], 1), CLASSES: sizes["classes"]}
    rates = {row.name: cfg.SOLVER.BASE_LR / cfg.SOLVER.IMS_PER_BATCH for row, cfg in rows.items()}
    return make_comparison(project / "results" / f"{table}.json", told, answers, rates)


def get_loss(cfg: CfgNode) -> dict[str, Any]:
    """Keys and values that select the loss of a config."""
    values = {key: get_value(cfg, key) for key in LOSS_KEYS}
    name = values[LOSS_KEYS[0]]
    args = get_value(cfg, ARGS).get(name, {})
    return {**values, **{f"{ARGS}.{name}.{key}": value for key, value in args.items()}}


def make_comparison(
    file: Path,
    sizes: Mapping[str, float],
    answers: Mapping[str, Mapping[str, Any]],
    rates: Mapping[str, float],
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
                "name": describe_answer(answers[name]),
                "values": dict(answers[name]),
                "rate": rates[name],
                "mean": round(statistics.mean(of_row), 2),
                "error": round(spread / math.sqrt(len(of_row)), 2),
            }
            for name, of_row in values.items()
        ],
    }


def describe_answer(values: Mapping[str, Any]) -> str:
    """Such as "focal loss, gamma 2, alpha 0.25", or "OHEMLoss, batch 128"."""
    name_key, gamma_key, alpha_key, prior_key = LOSS_KEYS[:4]
    if name_key not in values:
        return ", ".join(str(x) for x in values.values())
    parts = [values[name_key]]
    if parts == ["FocalLoss"]:
        parts = [f"focal loss, gamma {values[gamma_key]:g}", f"alpha {values[alpha_key]:g}"]
        if values[gamma_key] == 0:
            parts[0] = "cross entropy"
    if values[prior_key] != USUAL_PRIOR:
        parts.append(f"prior {values[prior_key]:g}")
    for key, value in values.items():
        # What is empty or 0 is off.
        if key.startswith(ARGS) and value:
            parts.append(f"{key.rpartition('.')[-1]} {value}")
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
