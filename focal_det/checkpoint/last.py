"""Which checkpoint of an OUTPUT_DIR a run resumes from."""

import functools
import logging
from pathlib import Path
from typing import Optional

from focal_det.host import LOGGER_NAME

from .weights_file import WeightsError, read_weights, refuse_nonfinite


def find_last_checkpoint(folder: Path) -> Optional[Path]:
    """The checkpoint to resume from, None if the folder has none.

    It is the one that `last_checkpoint` names, if it is valid, or else the valid one of the highest
    iteration. A valid checkpoint can be read, has correct checksums, finite weights and an
    iteration. What is skipped is logged with the reason.

    Raises:
        WeightsError: there are checkpoints, but none is valid; a run would start at iteration 0 and
            overwrite them.
    """
    tagged, fault = _read_tag(folder)
    if tagged and not fault:
        return tagged
    faults = [fault]
    # By iteration, not by name or time: model_final.pth sorts last, and copies get new times.
    found = []
    files = [x for x in sorted(folder.glob("model_*.pth")) if x != tagged]
    for file in files:
        fault, iteration = _examine(file)
        if fault:
            faults.append(f"{file} is skipped: {fault}")
        else:
            found.append((iteration, file))
    if found:
        _, file = max(found)
        _warn_once(f"{'; '.join(faults)}. {file} is the newest checkpoint that can be read")
        return file
    if files or tagged:
        reasons = "".join(f"\n  {x}" for x in faults)
        raise WeightsError(f"{folder} has no checkpoint that a run can resume from:{reasons}")
    return None


def _read_tag(folder: Path) -> tuple[Optional[Path], str]:
    """The file that `last_checkpoint` names, if there is one, and why it is skipped, if it is."""
    tag = folder / "last_checkpoint"
    name = tag.read_text(errors="replace").strip() if tag.is_file() else ""
    if not name:
        return None, f"{tag} is empty or missing"
    # A file elsewhere does not belong to this run, whoever has written the tag.
    if Path(name).name != name:
        return None, f"{tag} names {name!r}, which is not a file name in its folder"
    file = folder / name
    if not file.is_file():
        return None, f"{tag} names {name}, which does not exist"
    fault, _ = _examine(file)
    return file, fault and f"{file} is skipped: {fault}"


def _examine(file: Path) -> tuple[str, int]:
    """Why a run cannot resume from a checkpoint, empty if it can; and its iteration."""
    stat = file.stat()
    return _examine_once(file, stat.st_mtime_ns, stat.st_size)


# A checkpoint is asked for several times at a start, and reading one takes seconds.
@functools.lru_cache
def _examine_once(file: Path, mtime: int, size: int) -> tuple[str, int]:
    try:
        content = read_weights(str(file))
        refuse_nonfinite(content["model"])
    except (WeightsError, OSError) as error:
        return str(error), -1
    if "iteration" not in content:
        return "it holds weights alone, and no state to resume from", -1
    return "", int(content["iteration"])


@functools.lru_cache
def _warn_once(message: str) -> None:
    logging.getLogger(LOGGER_NAME).warning(message)
