"""What an OUTPUT_DIR holds of an earlier run: its checkpoints, its config, and files that a new run would mix with."""

import logging
import shutil
from pathlib import Path
from typing import Any, Optional

from focal_det.host import LOGGER_NAME

import yaml
from detectron2.config import CfgNode

from focal_det.config import flatten_config
from focal_det.engine.weights_file import WeightsError, read_weights

# Files of a run, by pattern; config.yaml and log.txt are written before a run has done anything.
_RUN_FILES = ("last_checkpoint", "model_*.pth", "sick_*.pth", "metrics.json")
_ALL_FILES = (*_RUN_FILES, "events.out.tfevents.*", "log.txt*", "inference")
# Keys that may differ at a resume without changing what is learnt; a key ending in "." stands for
# all below it.
_FREE_KEYS = (
    "CUDNN_BENCHMARK",
    "DATALOADER.NUM_WORKERS",
    "DATASETS.TEST",
    "INPUT.MAX_SIZE_TEST",
    "INPUT.MIN_SIZE_TEST",
    "MODEL.DEVICE",
    "MODEL.FOCAL_DET.DATASETS",  # where the files are
    "MODEL.FOCAL_DET.TELEMETRY_PERIOD",
    "MODEL.RETINANET.NMS_THRESH_TEST",
    "MODEL.RETINANET.SCORE_THRESH_TEST",
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST",
    "MODEL.WEIGHTS",  # not read at a resume
    "OUTPUT_DIR",
    "SOLVER.CHECKPOINT_PERIOD",
    "SOLVER.MAX_ITER",  # a longer run
    "TEST.",
    "VERSION",
    "VIS_PERIOD",
)


def find_run_files(folder: Path) -> list[str]:
    """Names of the files that an earlier run has left and a new one would overwrite or mix with."""
    files = [x for pattern in _RUN_FILES for x in sorted(folder.glob(pattern))]
    return [x.name for x in files if x.stat().st_size > 0]


def remove_run(folder: Path) -> None:
    """Remove all that a run has written; files of other names stay."""
    for pattern in _ALL_FILES:
        for path in folder.glob(pattern):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()


def find_last_checkpoint(folder: Path) -> Optional[Path]:
    """The checkpoint to resume from, None without any.

    It is the one that `last_checkpoint` names. Without that tag, or if the file it names does not
    exist, it is the readable one of the highest iteration.
    """
    tag = folder / "last_checkpoint"
    tagged = tag.read_text().strip() if tag.is_file() else ""
    if tagged and (folder / tagged).is_file():
        return folder / tagged
    found = [x for x in map(_read_iteration, sorted(folder.glob("model_*.pth"))) if x]
    if not found:
        return None
    _, file = max(found)
    reason = f"names {tagged}, which does not exist" if tagged else "is empty or missing"
    message = f"{tag} {reason}; {file.name} is the newest checkpoint that can be read"
    logging.getLogger(LOGGER_NAME).warning(message)
    return file


def _read_iteration(file: Path) -> Optional[tuple[int, Path]]:
    """The iteration after which a checkpoint was saved; None if it cannot be read."""
    try:
        return int(read_weights(str(file)).get("iteration", -1)), file
    except WeightsError as error:
        logging.getLogger(LOGGER_NAME).warning(f"{file} is left out: {error}")
        return None


def read_earlier_config(folder: Path) -> dict[str, Any]:
    """The config, by full keys, that the run in a folder was trained with; empty if it is not known.

    It is the one in the last checkpoint, or in config.yaml for a run of Detectron2's own script.
    """
    checkpoint = find_last_checkpoint(folder)
    text = _read_config_of(checkpoint) if checkpoint else None
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
        By key, the value before and the value now. A key that only one config knows is left out:
        another version of Detectron2 or focal_det has written the other.
    """
    now = flatten_config(yaml.safe_load(cfg.dump()))  # as plain as what was dumped before
    return {
        key: (before[key], value)
        for key, value in now.items()
        if key in before and before[key] != value and not _is_free(key, before[key], value)
    }


def _is_free(key: str, before: Any, now: Any) -> bool:
    """Whether a key may differ; a negative SEED is none, and is drawn for each run."""
    if key == "SEED":
        return before < 0 or now < 0
    return any(key == x or (x.endswith(".") and key.startswith(x)) for x in _FREE_KEYS)
