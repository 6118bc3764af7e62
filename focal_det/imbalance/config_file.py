"""Configs with numbers that were measured on a training set."""

import logging
import os
from collections.abc import Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from focal_det.files import write_text
from focal_det.host import LOGGER_NAME
from focal_det.modeling.build import read_settings
from focal_det.modeling.settings import read_anchors, read_class_settings

from .anchors import Anchors
from .class_weights import get_weight_values
from .describe import describe
from .measure import TrainingSetReport

_SUFFIXES = (".yaml", ".yml")
# Configs in it ship with focal_det, and stay where they are when other files are moved.
_ROOT = Path(__file__).resolve().parents[2]
# How a suggested config begins; a file that begins like this may be overwritten.
_FIRST_LINE = "Anchors, pi and alpha for"


def check_suggestion_file(file: Path, config_file: str) -> None:
    """Refuse a `--write` file that `write_suggestion` must not write; see `check_written_file`."""
    check_written_file("--write", file, config_file, _FIRST_LINE)


def write_suggestion(
    report: TrainingSetReport, cfg: CfgNode, config_file: str, opts: Sequence[str], file: Path
) -> None:
    """Write a config on top of `config_file` with what the report suggests.

    That is better anchors and either the advised loss and sampling or, if they are as advised, pi
    and alpha per class: with these, an answer would not be the one that was recorded.

    Args:
        opts: KEY VALUE pairs that `cfg` includes; they are written as well.
    """
    values = get_options(cfg, opts)
    if report.anchors:
        values.update(_get_anchor_values(report.anchors, cfg))
    advised = [item.values for item in report.advice if item.values]
    for item in advised:
        values.update(item)
    if not advised:
        warn_unread(cfg)
        values.update(get_weight_values(report.weights, read_class_settings(cfg)))
    training_sets = " + ".join(cfg.DATASETS.TRAIN)
    header = [f"{_FIRST_LINE} {training_sets}, from focal-det check --write.", *describe(report)]
    write_config(file, Path(config_file), values, header)


def _get_anchor_values(anchors: Anchors, cfg: CfgNode) -> dict[str, Any]:
    """What suggested anchors set in a config, by key."""
    values: dict[str, Any] = {
        "MODEL.ANCHOR_GENERATOR.SIZES": [list(x) for x in anchors.sizes],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [list(anchors.aspect_ratios)],
    }
    settings = read_anchors(cfg)
    if settings is not None and len(anchors.strides) > len(settings.level_names):
        # p2, the finer level, is made of res2.
        backbone_levels = ["res2", "res3", "res4", "res5"]
        values["MODEL.RESNETS.OUT_FEATURES"] = backbone_levels
        values["MODEL.FPN.IN_FEATURES"] = list(backbone_levels)
        values[settings.level_names_key] = ["p2", *settings.level_names]
    return values


def check_written_file(flag: str, file: Path, config_file: str, first_line: str) -> None:
    """Refuse to write over anything but an older config of the same kind.

    Args:
        flag: option that names the file, for messages.
        file: to write.
        config_file: of `find_config_file`; the written config will be based on it.
        first_line: how a config of this kind begins, after "# ".

    Raises:
        ValueError: not a yaml file, somebody else's file, or one that would be based on itself or
            on a URL.
    """
    if "://" in config_file:
        raise ValueError(f"--config-file must be a file for {flag}, got {config_file}; download it")
    if file.suffix not in _SUFFIXES:
        raise ValueError(f"{flag} must be a .yaml file, got {file}")
    if file.exists() and not _read_text(file).startswith(f"# {first_line}"):
        raise ValueError(
            f"{flag} {file} exists and is not from this program; remove it or choose another name"
        )
    # The config, or one of its bases, may be an older config of this kind.
    if file.resolve() in _find_bases(Path(config_file)):
        raise ValueError(f"{flag} {file} is --config-file or one of its bases; choose another name")


def _find_bases(config_file: Path) -> set[Path]:
    """The config file and those that it is based on, as far as they are local files."""
    found: set[Path] = set()
    open_files = [config_file]
    while open_files:
        file = open_files.pop().resolve()
        # Files that are based on each other are reported when the config is loaded.
        if file in found or not file.is_file():
            continue
        found.add(file)
        open_files += [file.parent / Path(x).expanduser() for x in _read_base_names(file)]
    return found


def _read_base_names(file: Path) -> list[str]:
    """What the `_BASE_` of a config names: one file or several; nothing if it is not yaml."""
    try:
        # The nodes alone: nothing is constructed, so a tag cannot run code.
        content = yaml.compose(_read_text(file))
    except yaml.YAMLError:
        return []
    if not isinstance(content, yaml.MappingNode):
        return []
    names: list[str] = []
    for key, value in content.value:
        if key.value == "_BASE_":
            nodes = value.value if isinstance(value, yaml.SequenceNode) else [value]
            names += [x.value for x in nodes if isinstance(x, yaml.ScalarNode)]
    return names


def _read_text(file: Path) -> str:
    # Somebody else's file may have any encoding, and must still be recognized as theirs.
    return file.read_text(encoding="utf-8", errors="replace")


def get_options(cfg: CfgNode, opts: Sequence[str]) -> dict[str, Any]:
    """The values that KEY VALUE pairs have in the config they were merged into."""
    return {key: reduce(getitem, key.split("."), cfg) for key in opts[0::2]}


def write_config(file: Path, base: Path, values: Mapping[str, Any], header: Sequence[str]) -> None:
    """Write a config on top of another, for any Detectron2 program.

    Args:
        base: config that the new one extends; named relative to `file`, so that both can be moved
            together; by its full path if it ships with focal_det and `file` is elsewhere.
        values: by full key.
        header: lines of the comment at the top.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    # A base that is a link stays one; yaml has forward slashes on every system.
    base = base.parent.resolve() / base.name
    if _ROOT not in base.parents or _ROOT in file.resolve().parents:
        base = Path(os.path.relpath(base, file.parent.resolve()))
    content: dict[str, Any] = {"_BASE_": base.as_posix()}
    for key, value in values.items():
        _set_value(content, key, value)
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header)
    text = yaml.safe_dump(
        content, default_flow_style=None, sort_keys=False, width=130, allow_unicode=True
    )
    write_text(file, comment + text)


def _set_value(content: dict[str, Any], key: str, value: Any) -> None:
    """Set the value of a full key in nested dicts, which are added as needed."""
    *parents, leaf = key.split(".")
    node = content
    for parent in parents:
        node = node.setdefault(parent, {})
    node[leaf] = value


def warn_unread(cfg: CfgNode) -> None:
    """Warn about numbers per class that the config's model or loss does not read or take."""
    warn = logging.getLogger(LOGGER_NAME).warning
    for reason in read_class_settings(cfg).missing:
        warn(f"Not written: {reason}")
    # What a two-stage detector does not take is not written.
    if not read_settings(cfg).is_dense:
        return
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
