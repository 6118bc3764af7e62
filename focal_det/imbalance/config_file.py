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

from .class_weights import ClassWeights

MAX_ALPHA = 0.95


def get_weight_values(weights: ClassWeights, max_alpha: float) -> dict[str, list[float]]:
    """What goes into a config, by key."""
    return {
        "MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS": [round_weight(x) for x in weights.priors],
        "MODEL.FOCAL_DET.CLS_LOSS.ARGS.FocalLoss.alpha_per_class": [
            min(round_weight(x), max_alpha) for x in weights.alphas[weights.method]
        ],
    }


def round_weight(value: float) -> float:
    """Four significant digits, as weights are written."""
    return float(f"{value:.4g}")


def warn_unread(cfg: CfgNode) -> None:
    """Say which numbers per class the config's model or loss does not read."""
    warn = logging.getLogger(LOGGER_NAME).warning
    if cfg.MODEL.META_ARCHITECTURE != "FocalRetinaNet":
        warn(
            f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}; only FocalRetinaNet reads the numbers per class"
        )
    loss_name = cfg.MODEL.FOCAL_DET.CLS_LOSS.NAME
    if loss_name != "FocalLoss":
        warn(
            f"alpha_per_class is written for FocalLoss, but MODEL.FOCAL_DET.CLS_LOSS.NAME is {loss_name}"
        )


def write_config(
    file: Path,
    config_file: Path,
    cfg: CfgNode,
    opts: Sequence[str],
    values: Mapping[str, Any],
    header: Sequence[str],
) -> None:
    """A config on top of `config_file`, with the changes from the command line and `values`.

    Args:
        opts: KEY VALUE pairs that are merged in `cfg`, from which their values are taken.
        values: by full key.
        header: lines of the comment above.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    base = os.path.relpath(config_file.parent.resolve() / config_file.name, file.parent.resolve())
    content: dict[str, Any] = {"_BASE_": Path(base).as_posix()}
    for key, value in {
        **{key: reduce(getitem, key.split("."), cfg) for key in opts[0::2]},
        **values,
    }.items():
        *parents, leaf = key.split(".")
        reduce(lambda node, part: node.setdefault(part, {}), parents, content)[leaf] = value
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header)
    text = yaml.safe_dump(
        content, default_flow_style=None, sort_keys=False, width=130, allow_unicode=True
    )
    file.write_text(comment + text, encoding="utf-8")


def to_command_line(words: Sequence[str]) -> str:
    """A command for a POSIX shell, with the variable that names the data sets if it is set."""
    datasets_file = os.environ.get("FOCAL_DET_DATASETS")
    variable = f"FOCAL_DET_DATASETS={_quote(datasets_file)} " if datasets_file else ""
    return variable + " ".join(_quote(x) for x in words)


def _quote(word: str) -> str:
    """In double quotes where that is enough, so that "('cells_train',)" is legible."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)
