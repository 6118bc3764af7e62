"""The functions of Detectron2's model_zoo, for the configs and models that ship with focal_det.

`zoo.json` has an entry per trained model, by the path of its config. A checkpoint is looked for in
the folder that the environment variable FOCAL_DET_ZOO names, then beside this file, then at its
URL. Local files, and what `get` downloads, are checked against the sha256 in `zoo.json`, if any.
"""

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

from .cache import compute_sha256


@lru_cache(maxsize=1)
def read_zoo() -> dict[str, dict[str, Any]]:
    """Entries of zoo.json by config path."""
    return json.loads(Path(__file__).with_name("zoo.json").read_text())


def get_checkpoint_url(config_path: str) -> str:
    """Path or URL of the model trained with a shipped config, for `MODEL.WEIGHTS`.

    Raises:
        RuntimeError: no trained model for this config, or a file with another hash than recorded.
    """
    entry = _get_entry(config_path)
    url = entry["url"]
    name = url.rsplit("/", 1)[-1] if url else entry["file"]
    folders = [Path(__file__).parent]
    if os.environ.get("FOCAL_DET_ZOO"):
        # First, so that a site can give its own copies precedence.
        folders.insert(0, Path(os.environ["FOCAL_DET_ZOO"]))
    for folder in folders:
        file = folder / name
        if file.is_file():
            _check_sha256(file, entry["sha256"])
            return str(file)
    if url:
        return url
    raise RuntimeError(
        f"{config_path}: {name} is in none of {', '.join(map(str, folders))}; install focal_det "
        "again"
    )


def get_config(config_path: str, trained: bool = False) -> Any:
    """Config of a shipped yaml, or Lazy config of a shipped .py.

    Detectron2's defaults stay unchanged: focal_det's keys are added to this config alone.

    Args:
        trained: set the weights to those of the trained model.

    Raises:
        FileNotFoundError: no such config; names the nearest one.
        RuntimeError: as for `get_checkpoint_url`, with `trained`.
    """
    file = get_config_file(config_path)
    if file.endswith(".py"):
        lazy = LazyConfig.load(file)
        if trained:
            lazy.train.init_checkpoint = get_checkpoint_url(config_path)
        return lazy
    cfg = get_cfg()
    # A program that was started with DETECTRON2_ENV_MODULE=focal_det.env has the node already.
    if "FOCAL_DET" not in cfg.MODEL:
        add_focal_det_config(cfg)
    cfg.merge_from_file(file)
    if trained:
        cfg.MODEL.WEIGHTS = get_checkpoint_url(config_path)
    return cfg


def get(config_path: str, trained: bool = False, device: Optional[str] = None) -> nn.Module:
    """Model of a shipped config, in training mode as from Detectron2's `get`.

    Args:
        trained: load the weights of the trained model; otherwise those the config names, if any.
        device: "cpu" or "cuda"; by default that of a yaml config, but the CPU for a Lazy config or
            where there is no GPU.

    Raises:
        FileNotFoundError: no such config; names the nearest one.
        RuntimeError: no trained model for this config, or a file with another hash than recorded.
    """
    cfg = get_config(config_path, trained)
    if device is None and not torch.cuda.is_available():
        device = "cpu"
    if isinstance(cfg, CfgNode):
        cfg.MODEL.DEVICE = device or cfg.MODEL.DEVICE
        model = build_model(cfg)
        weights = cfg.MODEL.WEIGHTS
    else:
        model = instantiate(cfg.model)
        weights = cfg.train.init_checkpoint
        if device:
            model = model.to(device)
    # `get_checkpoint_url` has checked a file on this machine.
    if trained and "://" in weights:
        weights = PathManager.get_local_path(weights)
        _check_sha256(Path(weights), _get_entry(config_path)["sha256"])
    HealthyCheckpointer(model).load(weights)
    return model


def _get_entry(config_path: str) -> dict[str, Any]:
    zoo = read_zoo()
    # A Lazy config shares the model of its yaml.
    entry = zoo.get(config_path) or zoo.get(str(Path(config_path).with_suffix(".yaml")))
    if entry is None:
        known = describe_unknown("entry of the zoo", config_path, zoo)
        raise RuntimeError(f"There is no trained model for {config_path}. {known}")
    return entry


def _check_sha256(file: Path, expected: Optional[str]) -> None:
    """Refuse a file with another hash than recorded; warn if none is recorded."""
    if expected is None:
        logging.getLogger(LOGGER_NAME).warning(
            f"zoo.json has no sha256 of {file}: the file is not checked"
        )
        return
    found = compute_sha256(file)
    if found != expected:
        raise RuntimeError(
            f"{file} has the sha256 {found}, but zoo.json has {expected}: the file is damaged, or "
            "a different one; download it again"
        )
