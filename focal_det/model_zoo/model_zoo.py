"""The functions of Detectron2's model_zoo, for the configs and models that ship with focal_det.

`zoo.json` has an entry per trained model, by the path of its config. A checkpoint is looked for in the folder that the environment
variable FOCAL_DET_ZOO names, then beside this file, then at its URL; where its sha256 is known, it is checked before use.
"""

import hashlib
import json
import logging
import os
from functools import lru_cache
from pathlib import Path
from typing import Any, Optional

import torch
from detectron2.config import CfgNode, LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from torch import nn

from focal_det.checkpoint.checkpointer import HealthyCheckpointer
from focal_det.config import add_focal_det_config, get_config_file
from focal_det.host import LOGGER_NAME
from focal_det.messages import describe_unknown


@lru_cache(maxsize=1)
def read_zoo() -> dict[str, dict[str, Any]]:
    """The entries of zoo.json by config path."""
    return json.loads(Path(__file__).with_name("zoo.json").read_text())


def get_checkpoint_url(config_path: str) -> str:
    """Path or URL of the model trained with a shipped config, for `MODEL.WEIGHTS`.

    Raises:
        RuntimeError: there is no trained model for this config, or the file is not the one that was recorded.
    """
    entry = _get_entry(config_path)
    name = entry["url"].rsplit("/", 1)[-1] if entry["url"] else entry["file"]
    folders = [Path(x) for x in (os.environ.get("FOCAL_DET_ZOO"), Path(__file__).parent) if x]
    file = next((folder / name for folder in folders if (folder / name).is_file()), None)
    if file is None and entry["url"]:
        return entry["url"]
    if file is None:
        raise RuntimeError(
            f"{config_path}: {name} is in none of {', '.join(map(str, folders))}; install focal_det again"
        )
    _check_sha256(file, entry["sha256"])
    return str(file)


def get_config(config_path: str, trained: bool = False) -> Any:
    """Config of a shipped yaml, or Lazy config of a .py; with `trained`, its weights are those of the trained model.

    Detectron2's defaults stay as they are: the config has focal_det's keys of its own.
    """
    file = get_config_file(config_path)
    if file.endswith(".py"):
        lazy = LazyConfig.load(file)
        if trained:
            lazy.train.init_checkpoint = get_checkpoint_url(config_path)
        return lazy
    cfg = get_cfg()
    if "FOCAL_DET" not in cfg.MODEL:
        add_focal_det_config(cfg)
    cfg.merge_from_file(file)
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(config_path)
    return cfg


def get(config_path: str, trained: bool = False, device: Optional[str] = None) -> nn.Module:
    """Model of a shipped config, in training mode as from Detectron2's `get`.

    Args:
        trained: with the weights of the trained model; otherwise with those that the config names, if any.
        device: "cpu" or "cuda"; by default the config's, or the CPU where there is no GPU.

    Raises:
        RuntimeError: there is no trained model for this config, or the file is not the one that was recorded.
    """
    cfg = get_config(config_path, trained)
    device = device or (None if torch.cuda.is_available() else "cpu")
    if isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE = device or cfg.MODEL.DEVICE
        model, weights = build_model(cfg), cfg.MODEL.WEIGHTS
    else:
        model, weights = instantiate(cfg.model), cfg.train.init_checkpoint
        model = model.to(device) if device else model
    if trained and "://" in weights:  # else it has been checked
        weights = PathManager.get_local_path(weights)
        _check_sha256(Path(weights), _get_entry(config_path)["sha256"])
    HealthyCheckpointer(model).load(weights)
    return model


def _get_entry(config_path: str) -> dict[str, Any]:
    zoo = read_zoo()
    entry = zoo.get(config_path) or zoo.get(str(Path(config_path).with_suffix(".yaml")))
    if entry is None:
        raise RuntimeError(
            f"There is no trained model for {config_path}. {describe_unknown('entry of the zoo', config_path, zoo)}"
        )
    return entry


def _check_sha256(file: Path, expected: Optional[str]) -> None:
    """Refuse a file with another hash than recorded; warn of one that has none recorded."""
    if expected is None:
        logging.getLogger(LOGGER_NAME).warning(
            f"zoo.json has no sha256 of {file}: the file is not checked"
        )
        return
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != expected:
        raise RuntimeError(
            f"{file} has the sha256 {found}, but zoo.json has {expected}: it is damaged or another file; get it again"
        )
