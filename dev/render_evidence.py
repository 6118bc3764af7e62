"""Write focal_det/imbalance/evidence.json, from which `focal-det check` gives advice:

python dev/render_evidence.py
"""

import json
import math
import statistics
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from render_losses import pool_spread

from focal_det.experiments.sweep_rows import load_rows, read_rows
from focal_det.files import write_json
from focal_det.imbalance.advice import CLASSES, FREQUENCIES, NEGATIVES
from focal_det.modeling.build import get_value, read_settings

ROOT = Path(__file__).parent.parent
EVIDENCE = ROOT / "focal_det" / "imbalance" / "evidence.json"
PROJECTS = ROOT / "projects"
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
SAMPLING_KEYS = ("DATALOADER.SAMPLER_TRAIN", "DATALOADER.REPEAT_THRESHOLD")
# Rows of the long tail that differ in their sampling alone.
SAMPLINGS = ("focal_loss", "repeat_factor")


def make_evidence() -> dict[str, list[dict[str, Any]]]:
    """Recorded comparisons by topic, see `focal_det.imbalance.advice`."""
    measured = read_json(PROJECTS / "Imbalance" / "results" / "rungs.json")
    data = {f"Imbalance/{rung}": sizes for rung, sizes in measured["rungs"].items()}
    long_tail = "Losses/digits_longtail_train"
    losses = []
    for record, sizes in {**data, **measured["others"]}.items():
        if record != long_tail:
            losses.append(make_comparison(record, sizes, (NEGATIVES, CLASSES), get_loss))
    sizes = measured["others"][long_tail]
    sampling = make_comparison(
        long_tail, sizes, (FREQUENCIES, CLASSES), get_sampling, names=SAMPLINGS
    )
    return {"loss": losses, "sampling": [sampling]}


def make_comparison(
    record: str,
    sizes: Mapping[str, float],
    size_names: Sequence[str],
    get_values: Callable[[CfgNode], dict[str, Any]],
    *,
    names: Collection[str] = (),
) -> dict[str, Any]:
    """AP of the RetinaNets of a record, with standard errors from the spread of all their runs.

    Args:
        record: project and table.
        sizes: of the training set, see dev/measure_rungs.py.
        get_values: what selects the answer of a config.
        names: of the rows to take; all by default.
    """
    file = get_result_file(record)
    runs = {x["row"]: x["runs"] for x in read_json(file)["rows"]}
    cfgs = {x: cfg for x, cfg in load_configs(record).items() if not names or x in names}
    values = {x: [run["figures"]["bbox/AP"] for run in runs[x]] for x in cfgs}
    spread = pool_spread(list(values.values()))
    answers = []
    for name, cfg in cfgs.items():
        keys = get_values(cfg)
        answers.append(
            {
                "name": describe_answer(keys),
                "values": keys,
                "rate": cfg.SOLVER.BASE_LR / cfg.SOLVER.IMS_PER_BATCH,
                "mean": round(statistics.mean(values[name]), 2),
                "error": round(spread / math.sqrt(len(values[name])), 2),
            }
        )
    best = {}
    for answer in answers:
        key = json.dumps(answer["values"])
        # An answer with several learning rates counts with its best.
        if key not in best or answer["mean"] > best[key]["mean"]:
            best[key] = answer
    return {
        "sizes": {x: round(sizes[x], 1) for x in size_names},
        "record": str(file.relative_to(ROOT)),
        "answers": list(best.values()),
    }


def get_result_file(record: str) -> Path:
    project, table = record.split("/")
    return PROJECTS / project / "results" / f"{table}.json"


def load_configs(record: str) -> dict[str, CfgNode]:
    """Configs of the RetinaNets of a record, by row."""
    project, table = record.split("/")
    rows = load_rows(read_rows(PROJECTS / project / "rows.json")[table], ())
    return {row.name: cfg for row, cfg in rows.items() if read_settings(cfg).is_dense}


def get_sampling(cfg: CfgNode) -> dict[str, Any]:
    """Keys and values that select the sampling of a config."""
    return {key: get_value(cfg, key) for key in SAMPLING_KEYS}


def get_loss(cfg: CfgNode) -> dict[str, Any]:
    """Keys and values that select the loss of a config."""
    values = {key: get_value(cfg, key) for key in LOSS_KEYS}
    name = values[LOSS_KEYS[0]]
    args = get_value(cfg, ARGS).get(name, {})
    return {**values, **{f"{ARGS}.{name}.{key}": value for key, value in args.items()}}


def describe_answer(values: Mapping[str, Any]) -> str:
    """Such as "focal loss, gamma 2, alpha 0.25", or "OHEMLoss, batch 128"."""
    name_key, gamma_key, alpha_key, prior_key = LOSS_KEYS[:4]
    if name_key not in values:
        sampler, threshold = (values[key] for key in SAMPLING_KEYS)
        return sampler if threshold == 0 else f"{sampler}, threshold {threshold:g}"
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


if __name__ == "__main__":
    write_json(EVIDENCE, make_evidence())
