"""The config that `focal-det check --write` writes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from focal_det.modeling.build import read_settings

from .config_file import MAX_ALPHA, get_weight_values, write_config
from .describe import describe
from .measure import TrainingSetReport

_FIRST_LINE = "Anchors, pi and alpha for"


def write_suggestion(
    report: TrainingSetReport, cfg: CfgNode, config_file: Path, opts: Sequence[str], file: Path
) -> None:
    """A config on top of `config_file` with anchors, pi per class and alpha per class."""
    if file.exists() and not file.read_text().startswith(f"# {_FIRST_LINE}"):
        raise ValueError(
            f"--write {file} exists and is not from this program; remove it or choose another name"
        )
    values: dict[str, Any] = {}
    if report.anchors:
        values["MODEL.ANCHOR_GENERATOR.SIZES"] = [list(x) for x in report.anchors.sizes]
        values["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"] = [list(report.anchors.aspect_ratios)]
        if len(report.anchors.strides) > len(report.level_names):
            values["MODEL.RESNETS.OUT_FEATURES"] = values["MODEL.FPN.IN_FEATURES"] = [
                "res2",
                "res3",
                "res4",
                "res5",
            ]
            values[read_settings(cfg).get_key("IN_FEATURES")] = ["p2", *report.level_names]
    values.update(get_weight_values(report.weights, MAX_ALPHA))
    header = [
        f"{_FIRST_LINE} {' + '.join(cfg.DATASETS.TRAIN)}, from focal-det check --write.",
        *describe(report),
    ]
    write_config(file, config_file, cfg, opts, values, header)
