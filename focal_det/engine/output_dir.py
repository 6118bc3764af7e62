"""OUTPUT_DIR: its lock, and what may happen to the earlier run that it holds."""

import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode, get_cfg

from focal_det.checkpoint.last import find_last_checkpoint
from focal_det.files import lock_for_process
from focal_det.messages import shorten
from focal_det.modeling.build import INFERENCE_KEYS, flatten_config

# Patterns of files that a run leaves only if it has trained. config.yaml and log.txt are not among
# them, as they are written before the first iteration.
_RUN_FILES = (
    "last_checkpoint",
    "model_*.pth",
    "diverged_*.pth",
    "nonfinite_step_*.pth",
    "metrics.json",
)
_ALL_FILES = (
    *_RUN_FILES,
    ".*.part",
    "events.out.tfevents.*",
    "log.txt*",
    "inference/coco_instances_results.json",
    "inference/instances_predictions.pth",
    "inference/*_coco_format.json*",
    "curves.png",
    "detections.png",
    "telemetry.png",
)
_LOCK_FILE = ".lock"
# Keys that may change at a resume because they do not affect what is learnt; a key ending in "."
# stands for all keys below it.
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


@contextmanager
def lock_output_dir(folder: Path, seconds: float = 0.0) -> Iterator[None]:
    """Keep the runs of other processes out of a folder.

    Args:
        seconds: how long to wait for another run to release its lock. A network file system may
            hold the lock of a failed machine for a while.

    Raises:
        OSError: another run has locked it; names its process.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / _LOCK_FILE, "ab+")  # noqa: SIM115  (closed below)
    except OSError:
        if os.access(folder, os.W_OK):
            raise
        # No run can write here, so no lock is needed; `focal-det check` or Detectron2 reports it.
        yield
        return
    deadline = time.monotonic() + seconds
    with file:
        while not (is_locked := lock_for_process(file)) and time.monotonic() < deadline:
            time.sleep(1)
        if not is_locked:
            file.seek(0)
            owner = file.read().decode(errors="replace")
            raise BlockingIOError(
                f"OUTPUT_DIR {folder} is in use by another run ({owner}). Wait for its end, stop "
                "it, or choose another OUTPUT_DIR"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}".encode())
        file.flush()
        yield


def find_run_files(folder: Path) -> list[str]:
    """Names of an earlier run's files that a new run would overwrite or append to."""
    files = [x for pattern in _RUN_FILES for x in sorted(folder.glob(pattern))]
    return [x.name for x in files if x.stat().st_size > 0]


def remove_run(folder: Path, weights: str) -> None:
    """Remove the files of the run in a folder, logs and results included; others stay.

    Args:
        weights: MODEL.WEIGHTS of the new run.

    Raises:
        ValueError: `weights` is one of the files.
    """
    if not find_run_files(folder):
        return
    files = [x for pattern in _ALL_FILES for x in folder.glob(pattern) if x.is_file()]
    if Path(weights).resolve() in {x.resolve() for x in files}:
        raise ValueError(
            f"--overwrite would remove MODEL.WEIGHTS {weights}; choose another OUTPUT_DIR"
        )
    for file in files:
        file.unlink()


def refuse_mixed_runs(folder: Path) -> None:
    """Refuse to start a new run in a folder that holds one.

    Raises:
        ValueError: the folder holds a run; names its files and the options.
    """
    files = find_run_files(folder)
    if files:
        raise ValueError(
            f"OUTPUT_DIR {folder} holds a run ({shorten(files, 4)}). To continue it: --resume. To "
            "remove it and start anew: --overwrite. Or choose another OUTPUT_DIR"
        )


def refuse_changes(cfg: CfgNode, before: dict[str, Any], allowed: Sequence[str]) -> None:
    """Refuse to resume a run with settings that change what is learnt.

    Args:
        before: the config of the run, from `read_earlier_config`.
        allowed: keys that may have changed; a key such as SOLVER stands for all keys below it.

    Raises:
        ValueError: other settings have changed; names each with both values.
    """
    changes = {
        key: values
        for key, values in find_changes(cfg, before).items()
        if not any(key == x or key.startswith(f"{x}.") for x in allowed)
    }
    if changes:
        shown = "".join(
            f"\n  {key}: {old} before, {new} now" for key, (old, new) in changes.items()
        )
        raise ValueError(
            f"--resume: the run in {cfg.OUTPUT_DIR} was trained with other settings:{shown}\nSet "
            "them back, or continue with the new ones: --allow-changes "
            f"{','.join([*allowed, *changes])}"
        )


def read_earlier_config(folder: Path) -> dict[str, Any]:
    """The flattened config that the run in a folder was trained with; empty if unknown.

    It comes from the last checkpoint, or from config.yaml for a run of Detectron2's own script. A
    run without a checkpoint has nothing to continue, and its config counts as unknown.

    Raises:
        WeightsError: there are checkpoints, but none can be read.
    """
    checkpoint = find_last_checkpoint(folder)
    if checkpoint is None:
        return {}
    text = checkpoint.config
    file = folder / "config.yaml"
    if text is None and file.is_file():
        text = file.read_text(encoding="utf-8")
    if not text:
        return {}
    return flatten_config(yaml.safe_load(text))


def find_changes(cfg: CfgNode, before: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that affect what is learnt and differ from those of an earlier run.

    Args:
        before: the config of the earlier run, from `read_earlier_config`; if empty, so is
            the result.

    Returns:
        By key, the value before and the value now; None where the key is not set.
    """
    if not before:
        return {}
    # Through yaml, like the earlier config, because yaml turns tuples into lists.
    now = flatten_config(yaml.safe_load(cfg.dump()))
    declared = flatten_config(get_cfg())
    changes = {}
    for key in {**before, **now}:
        is_in_both = key in before and key in now
        if not is_in_both and not _is_own_arg(key, declared):
            continue
        old = _simplify(key, before)
        new = _simplify(key, now)
        if old != new and not _is_free(key, old, new, now):
            changes[key] = (old, new)
    return changes


def _is_own_arg(key: str, declared: dict[str, Any]) -> bool:
    """Whether a key is a component's argument that has no config default, such as a loss's gamma.

    Any other key that only one of two configs has is due to another version of Detectron2 or
    focal_det.
    """
    return key.startswith("MODEL.FOCAL_DET.") and ".ARGS." in key and key not in declared


def _simplify(key: str, values: dict[str, Any]) -> Any:
    """The value of a key; for data sets, without the paths of their files, which may move."""
    value = values.get(key)
    if key == "MODEL.FOCAL_DET.DATASETS" and isinstance(value, list):
        return [{k: v for k, v in x.items() if k not in ("json", "images", "root")} for x in value]
    return value


def _is_free(key: str, before: Any, now: Any, values: dict[str, Any]) -> bool:
    """Whether a resume allows this change of a key; `values` is the whole new config."""
    if key == "SEED":
        return before < 0 or now < 0  # a run with a negative SEED draws one
    if key == "SOLVER.MAX_ITER":
        # Other schedulers derive the learning rate of every iteration from it.
        return values["SOLVER.LR_SCHEDULER_NAME"] == "WarmupMultiStepLR"
    component, is_arg, argument = key.partition(".ARGS.")
    if is_arg and f"{component}.NAME" in values:
        # Only the arguments of the selected component are read.
        return not argument.startswith(f"{values[f'{component}.NAME']}.")
    return any(key == x or (x.endswith(".") and key.startswith(x)) for x in _FREE_KEYS)
