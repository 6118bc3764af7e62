"""What an OUTPUT_DIR holds of an earlier run: its checkpoints, its config, and files that a new run would mix with."""

from pathlib import Path
from typing import Any, Optional

import yaml
from detectron2.config import CfgNode, get_cfg

from focal_det.checkpoint.last import find_last_checkpoint
from focal_det.checkpoint.weights_file import WeightsError, read_weights
from focal_det.modeling.build import INFERENCE_KEYS, flatten_config

# Files of a run, by pattern; config.yaml and log.txt are written before a run has done anything.
_RUN_FILES = ("last_checkpoint", "model_*.pth", "diverged_*.pth", "metrics.json")
_ALL_FILES = (
    *_RUN_FILES,
    "*.pth.part",
    "events.out.tfevents.*",
    "log.txt*",
    "inference/coco_instances_results.json",
    "inference/instances_predictions.pth",
    "inference/*_coco_format.json*",
    "curves.png",
    "detections.png",
)
# Keys that may differ at a resume without changing what is learnt; a key ending in "." stands for
# all below it.
_FREE_KEYS = (
    "CUDNN_BENCHMARK",
    "DATALOADER.NUM_WORKERS",
    "DATASETS.TEST",
    "INPUT.MAX_SIZE_TEST",
    "INPUT.MIN_SIZE_TEST",
    "MODEL.DEVICE",
    "MODEL.FOCAL_DET.TELEMETRY_PERIOD",
    *INFERENCE_KEYS,
    "MODEL.WEIGHTS",  # not read at a resume
    "OUTPUT_DIR",
    "SOLVER.CHECKPOINT_PERIOD",
    "TEST.",
    "VERSION",
    "VIS_PERIOD",
)


def find_run_files(folder: Path) -> list[str]:
    """Names of the files that an earlier run has left and a new one would overwrite or mix with."""
    files = [x for pattern in _RUN_FILES for x in sorted(folder.glob(pattern))]
    return [x.name for x in files if x.stat().st_size > 0]


def find_all_run_files(folder: Path) -> list[Path]:
    """All that a run writes, its logs and results included; files of other names are left out."""
    return [x for pattern in _ALL_FILES for x in sorted(folder.glob(pattern)) if x.is_file()]


def read_earlier_config(folder: Path) -> dict[str, Any]:
    """The config, by full keys, that the run in a folder was trained with; empty if it is not known.

    It is the one in the last checkpoint, or in config.yaml for a run of Detectron2's own script.
    Without a checkpoint there is nothing that a run would go on with, and it is empty.
    """
    checkpoint = find_last_checkpoint(folder)
    if checkpoint is None:
        return {}
    text = _read_config_of(checkpoint)
    file = folder / "config.yaml"
    if text is None and file.is_file():
        text = file.read_text(encoding="utf-8")
    return flatten_config(yaml.safe_load(text)) if text else {}


def _read_config_of(checkpoint: Path) -> Optional[str]:
    try:
        return read_weights(str(checkpoint)).get("config")
    except WeightsError as error:
        raise WeightsError(
            f"the last checkpoint, {checkpoint}, cannot be read: {error}. Without this file, "
            "--resume goes on from the one before"
        ) from None


def find_changes(cfg: CfgNode, before: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys that decide what is learnt and differ from those of an earlier run.

    Args:
        before: of `read_earlier_config`.

    Returns:
        By key, the value before and the value now; None where a key was or is not set.
    """
    now = flatten_config(yaml.safe_load(cfg.dump()))  # as plain as what was dumped before
    if not before:
        return {}
    declared = flatten_config(get_cfg())
    keys = [x for x in {**before, **now} if (x in before and x in now) or _is_own_arg(x, declared)]
    pairs = {key: (_simplify(key, before), _simplify(key, now)) for key in keys}
    changes = {key: (old, new) for key, (old, new) in pairs.items() if old != new}
    return {key: pair for key, pair in changes.items() if not _is_free(key, *pair, now)}


def _is_own_arg(key: str, declared: dict[str, Any]) -> bool:
    """Whether a key is an argument of a component that only a file or command line has, like gamma.

    Other keys that one of two configs lacks are those of another version of Detectron2 or focal_det.
    """
    return key.startswith("MODEL.FOCAL_DET.") and ".ARGS." in key and key not in declared


def _simplify(key: str, values: dict[str, Any]) -> Any:
    """The value of a key; of data sets, without the paths of their files, which may move."""
    value = values.get(key)
    if key == "MODEL.FOCAL_DET.DATASETS" and isinstance(value, list):
        return [{k: v for k, v in x.items() if k not in ("json", "images", "root")} for x in value]
    return value


def _is_free(key: str, before: Any, now: Any, values: dict[str, Any]) -> bool:
    """Whether a key may differ, given all values of the config now."""
    if key == "SEED":
        return before < 0 or now < 0  # a negative SEED means that one is drawn
    if key == "SOLVER.MAX_ITER":
        # A longer run; but other schedulers derive the learning rate of all iterations from it.
        return values["SOLVER.LR_SCHEDULER_NAME"] == "WarmupMultiStepLR"
    for part in ("CLS_LOSS", "NORMALIZER"):
        args = f"MODEL.FOCAL_DET.{part}.ARGS."
        if key.startswith(args):
            # Only the arguments of the component that is used are read.
            return not key.startswith(f"{args}{values[f'MODEL.FOCAL_DET.{part}.NAME']}.")
    return any(key == x or (x.endswith(".") and key.startswith(x)) for x in _FREE_KEYS)
