"""Which checkpoint of an OUTPUT_DIR a run resumes from."""

import logging
from pathlib import Path
from typing import Optional

from focal_det.host import LOGGER_NAME

from .weights_file import WeightsError, read_weights


def find_last_checkpoint(folder: Path) -> Optional[Path]:
    """The checkpoint to resume from, None if the folder has none.

    It is the one that `last_checkpoint` names. Without that tag, or if the named file does not
    exist, it is the readable checkpoint of the highest iteration.

    Raises:
        WeightsError: there are checkpoints, but none can be read; a run would start at iteration 0
            and overwrite them.
    """
    tag = folder / "last_checkpoint"
    tagged = tag.read_text().strip() if tag.is_file() else ""
    if tagged and (folder / tagged).is_file():
        return folder / tagged

    # By iteration, not by name or time: model_final.pth sorts last, and copies get new times.
    files = sorted(folder.glob("model_*.pth"))
    found = [x for x in map(_read_iteration, files) if x]
    if files and not found:
        names = ", ".join(x.name for x in files)
        raise WeightsError(f"{folder} has no checkpoint that a run can resume from, but {names}")
    if not found:
        return None
    _, file = max(found)
    reason = "is empty or missing"
    if tagged:
        reason = f"names {tagged}, which does not exist"
    message = f"{tag} {reason}; {file.name} is the newest checkpoint that can be read"
    logging.getLogger(LOGGER_NAME).warning(message)
    return file


def _read_iteration(file: Path) -> Optional[tuple[int, Path]]:
    """The iteration after which a checkpoint was saved; None if it is unreadable or has none."""
    try:
        content = read_weights(str(file))
    except WeightsError as error:
        logging.getLogger(LOGGER_NAME).warning(f"{file} is skipped: {error}")
        return None
    if "iteration" not in content:
        logging.getLogger(LOGGER_NAME).warning(f"{file} is skipped: it holds weights only")
        return None
    return int(content["iteration"]), file
