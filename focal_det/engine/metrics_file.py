"""The metrics of a run, one JSON object per line, cut back to where a resumed run starts."""

import json
from pathlib import Path

from focal_det.files import write_text


def drop_later_metrics(file: Path, start_iter: int) -> None:
    """Remove the lines of iterations that a resumed run repeats, and lines that were cut off.

    Args:
        file: metrics.json of Detectron2; it may be missing.
        start_iter: the first iteration that is repeated.

    Raises:
        DiskFullError, OSError: the file cannot be written; it stays unchanged.
    """
    if not file.is_file():
        return
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = [line for line in lines if _read_iteration(line) < start_iter]
    if kept != lines:
        write_text(file, "".join(f"{line}\n" for line in kept))


def _read_iteration(line: str) -> float:
    """The iteration of a line; infinity if it has none, such as a line cut off by a kill."""
    try:
        return float(json.loads(line)["iteration"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
