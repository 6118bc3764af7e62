"""Configs with numbers that were measured on a training set."""

import logging
import os
import shlex
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from focal_det.host import LOGGER_NAME
from focal_det.modeling.build import read_settings

from .anchors import Anchors
from .class_weights import get_weight_values
from .describe import describe
from .measure import TrainingSetReport

# Characters that the shell obeys inside double quotes.
_OBEYED_IN_QUOTES = set('"$`\\!')
# How a suggested config begins, and so how one is recognized that may be overwritten.
_FIRST_LINE = "Anchors, pi and alpha for"


def write_suggestion(
    report: TrainingSetReport, cfg: CfgNode, config_file: Path, opts: Sequence[str], file: Path
) -> None:
    """Write a config on top of `config_file` with better anchors, and pi and alpha per class.

    Args:
        opts: as for `write_config`.

    Raises:
        ValueError: `file` exists and is not from an earlier call.
    """
    if file.exists() and not file.read_text().startswith(f"# {_FIRST_LINE}"):
        raise ValueError(
            f"--write {file} exists and is not from this program; remove it or choose another name"
        )
    values: dict[str, Any] = {}
    if report.anchors:
        values.update(_get_anchor_values(report.anchors, report.level_names, cfg))
    values.update(get_weight_values(report.weights))
    training_sets = " + ".join(cfg.DATASETS.TRAIN)
    header = [f"{_FIRST_LINE} {training_sets}, from focal-det check --write.", *describe(report)]
    write_config(file, config_file, cfg, opts, values, header)


def _get_anchor_values(
    anchors: Anchors, level_names: Sequence[str], cfg: CfgNode
) -> dict[str, Any]:
    """What suggested anchors set in a config, by key."""
    values: dict[str, Any] = {
        "MODEL.ANCHOR_GENERATOR.SIZES": [list(x) for x in anchors.sizes],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [list(anchors.aspect_ratios)],
    }
    if len(anchors.strides) > len(level_names):
        # p2, the finer level, is made of res2.
        backbone_levels = ["res2", "res3", "res4", "res5"]
        values["MODEL.RESNETS.OUT_FEATURES"] = backbone_levels
        values["MODEL.FPN.IN_FEATURES"] = list(backbone_levels)
        values[read_settings(cfg).get_key("IN_FEATURES")] = ["p2", *level_names]
    return values


def write_config(
    file: Path,
    config_file: Path,
    cfg: CfgNode,
    opts: Sequence[str],
    values: Mapping[str, Any],
    header: Sequence[str],
) -> None:
    """Write a config on top of `config_file`, with the command line's changes and `values`.

    Args:
        opts: KEY VALUE pairs, merged into `cfg`, from which their values are taken.
        values: by full key.
        header: lines of the comment at the top.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    # yaml has forward slashes on every system.
    base = os.path.relpath(config_file.parent.resolve() / config_file.name, file.parent.resolve())
    content: dict[str, Any] = {"_BASE_": Path(base).as_posix()}
    for key in opts[0::2]:
        _set_value(content, key, reduce(getitem, key.split("."), cfg))
    for key, value in values.items():
        _set_value(content, key, value)
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header)
    text = yaml.safe_dump(
        content, default_flow_style=None, sort_keys=False, width=130, allow_unicode=True
    )
    file.write_text(comment + text, encoding="utf-8")


def _set_value(content: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a full key in nested dicts, which are added as needed."""
    *parents, leaf = key.split(".")
    node = content
    for parent in parents:
        node = node.setdefault(parent, {})
    node[leaf] = value


def warn_unread(cfg: CfgNode) -> None:
    """Warn about numbers per class that the config's model or loss does not read."""
    warn = logging.getLogger(LOGGER_NAME).warning
    architecture = cfg.MODEL.META_ARCHITECTURE
    if architecture != "FocalRetinaNet":
        warn(
            f"MODEL.META_ARCHITECTURE is {architecture}; only FocalRetinaNet reads the numbers "
            "per class"
        )
    loss_name = cfg.MODEL.FOCAL_DET.CLS_LOSS.NAME
    if loss_name != "FocalLoss":
        warn(
            "alpha_per_class is written for FocalLoss, but MODEL.FOCAL_DET.CLS_LOSS.NAME is "
            f"{loss_name}"
        )


def to_command_line(words: Sequence[str]) -> str:
    """A command for a POSIX shell, with FOCAL_DET_DATASETS if that is set."""
    datasets_file = os.environ.get("FOCAL_DET_DATASETS")
    variable = ""
    if datasets_file:
        variable = f"FOCAL_DET_DATASETS={_quote(datasets_file)} "
    return variable + " ".join(_quote(x) for x in words)


def _quote(word: str) -> str:
    # `shlex.quote` would make "('cells_train',)" illegible, as it only knows single quotes.
    if "'" in word and not set(word) & _OBEYED_IN_QUOTES:
        return f'"{word}"'
    return shlex.quote(word)
