"""Files that are complete or missing: a new file replaces the old one in a single step."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Optional


class DiskFullError(OSError):
    """A file could not be written because the disk is full; the message is for the user."""


@contextmanager
def open_to_replace(file: Path) -> Iterator[BinaryIO]:
    """Open a binary file that gets its name once all of it is on the disk.

    An earlier file of that name stays until then. If the block fails, the new file is removed.

    Args:
        file: the final name.

    Raises:
        DiskFullError: the disk is full.
        OSError: the file cannot be written.
    """
    part = file.with_name(f"{file.name}.part")
    try:
        with open(part, "wb") as stream:
            yield stream
            # Without fsync, a power cut after the rename can leave an empty file of the final name.
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if is_disk_full(error):
            raise DiskFullError(describe_full_disk(file)) from None
        raise


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file whole or not at all, its folder included.

    Raises:
        DiskFullError, OSError: see `open_to_replace`.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with open_to_replace(file) as stream:
        stream.write(json.dumps(content, indent=1).encode() + b"\n")


def is_disk_full(error: Optional[BaseException]) -> bool:
    """Whether a full disk caused an error, directly or through the errors it was raised from."""
    # torch's error about a broken zip file does not mention the disk; the error before it does.
    while error is not None:
        if isinstance(error, DiskFullError) or getattr(error, "errno", None) == errno.ENOSPC:
            return True
        error = error.__cause__ or error.__context__
    return False


def describe_full_disk(file: Path) -> str:
    """Error text for a file that did not fit on the disk: the file, the free space, the fix."""
    free = shutil.disk_usage(file.parent).free
    return (
        f"the disk is full: {file} could not be written ({free / 1e6:.1f} MB are free in "
        f"{file.parent}). Files saved before are complete; make room, then continue with --resume"
    )
