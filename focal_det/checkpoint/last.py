"""Which checkpoint of an OUTPUT_DIR a run resumes from."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Optional, Union

from .weights_file import WeightsError, read_weights, refuse_nonfinite


@dataclass(frozen=True)
class LastCheckpoint:
    """The checkpoint that a run resumes from.

    Attributes:
        file: readable, with correct checksums, finite weights and an iteration.
        iteration: the last one that the run had completed.
        num_processes: of the run; None if the checkpoint does not say.
        config: yaml text of the run's config; None in checkpoints of Detectron2's own trainer.
        skipped: a reason for each file that was skipped; empty if `last_checkpoint` names `file`.
    """

    file: Path
    iteration: int
    num_processes: Optional[int]
    config: Optional[str]
    skipped: Sequence[str] = ()


def find_last_checkpoint(folder: Path) -> Optional[LastCheckpoint]:
    """The checkpoint to resume from, None if the folder has none.

    It is the one that `last_checkpoint` names, if it is valid, or else the valid one of the highest
    iteration.

    Raises:
        WeightsError: there are checkpoints, but none is valid; a run would start at iteration 0 and
            overwrite them.
    """
    tag = folder / "last_checkpoint"
    name = tag.read_text(errors="replace").strip() if tag.is_file() else ""
    files = sorted(folder.glob("model_*.pth"))
    if not name:
        skipped = [f"{tag} is empty or missing"]
    # A file elsewhere does not belong to this run, even if the tag names it.
    elif Path(name).name != name:
        skipped = [f"{tag} names {name!r}, which is not a file name in its folder"]
    elif not (folder / name).is_file():
        skipped = [f"{tag} names {name}, which does not exist"]
    else:
        skipped = []
        tagged = _examine(folder / name)
        if isinstance(tagged, LastCheckpoint):
            return tagged
        files = list(dict.fromkeys([folder / name, *files]))

    examined = {file: _examine(file) for file in files}
    skipped += [f"{k} is skipped: {v}" for k, v in examined.items() if isinstance(v, str)]
    valid = [x for x in examined.values() if isinstance(x, LastCheckpoint)]
    if valid:
        # By iteration, not by name or time: model_final.pth sorts last, and copies get new times.
        newest = max(valid, key=lambda x: (x.iteration, x.file))
        return replace(newest, skipped=skipped)
    if files:
        reasons = "".join(f"\n  {x}" for x in skipped)
        raise WeightsError(f"{folder} has no checkpoint that a run can resume from:{reasons}")
    return None


def _examine(file: Path) -> Union[LastCheckpoint, str]:
    """The checkpoint in a file, or the reason why no run can resume from it."""
    stat = file.stat()
    return _examine_once(file, stat.st_mtime_ns, stat.st_size)


# A starting run looks for its checkpoint several times, and reading one takes seconds.
@functools.lru_cache
def _examine_once(file: Path, mtime: int, size: int) -> Union[LastCheckpoint, str]:
    try:
        content = read_weights(str(file))
        refuse_nonfinite(content["model"])
    except (WeightsError, OSError) as error:
        return str(error)
    if "iteration" not in content:
        return "it holds weights alone, and no state to resume from"
    return LastCheckpoint(
        file,
        int(content["iteration"]),
        num_processes=content.get("run_state", {}).get("num_processes"),
        config=content.get("config"),
    )
