"""Files that are complete or missing: a new file replaces the old one in a single step."""

import errno
import glob
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Optional

try:
    import fcntl
except ModuleNotFoundError:  # Windows, where the half-written files of dead processes stay
    fcntl = None  # type: ignore[assignment]

_PART = ".part"  # suffix of a file that is being written
_MAX_TRIES = 10
_SECONDS_TO_REMOVE = 0.01


class DiskFullError(OSError):
    """A file could not be written because the disk is full; the message is for the user."""


@contextmanager
def open_to_replace(file: Path, *, num_bytes: int = 0) -> Iterator[BinaryIO]:
    """Open a binary file that gets its name once all of it is on the disk.

    An earlier file of that name stays until then. If the block fails, the new file is removed; if
    the process is killed, the next writer of that name removes it. A link of that name is replaced,
    and what it points to is not touched.

    Args:
        file: the final name.
        num_bytes: expected size, such as that of the previous file; 0 if it is not known.

    Raises:
        DiskFullError: the disk is full, or has less room than `num_bytes`.
        OSError: the file cannot be written.
    """
    remove_parts(file.parent, glob.escape(file.name))
    if num_bytes and shutil.disk_usage(file.parent).free < num_bytes:
        raise DiskFullError(describe_full_disk(file, num_bytes))
    part = file.with_name(f".{file.name}.{secrets.token_hex(4)}{_PART}")
    try:
        with _open_part(part) as stream:
            yield stream
            # Without fsync, a power cut after the rename can leave an empty file under this name.
            stream.flush()
            os.fsync(stream.fileno())
            # Renamed within the block, so that it is locked until it has its final name.
            if fcntl is None:
                stream.close()  # Windows cannot rename an open file
            part.replace(file)
        _sync_folder(file.parent)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if is_disk_full(error):
            raise DiskFullError(describe_full_disk(file, num_bytes)) from None
        raise


def _open_part(part: Path) -> BinaryIO:
    """Open a new file that others see to be written until it is closed."""
    for _ in range(_MAX_TRIES):
        # "x": never through a link, or into a file that another process writes.
        stream = open(part, "xb")  # noqa: SIM115, as it is returned
        if not _lock(stream):
            # Where there are locks, `remove_parts` of another process has it, and removes it.
            time.sleep(_SECONDS_TO_REMOVE)
        if part.exists():
            return stream
        stream.close()
    raise OSError(f"{part}: other processes remove it before it can be locked")


def remove_parts(folder: Path, pattern: str = "*") -> None:
    """Remove the files that killed processes were writing.

    Args:
        pattern: glob pattern of the final names of the files.
    """
    if fcntl is None:
        return
    for part in folder.glob(f".{pattern}.*{_PART}"):
        # It may be gone by now, or belong to another user.
        try:
            with open(part, "rb+") as stream:
                if _lock(stream):
                    part.unlink()
        except OSError:
            continue


def _lock(stream: BinaryIO) -> bool:
    """Lock a file until it is closed; returns whether that succeeded."""
    if fcntl is None:
        return True
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    # Some network file systems have no locks; a file that may be in use there is left alone.
    except OSError:
        return False
    return True


def lock_for_process(stream: BinaryIO) -> bool:
    """Lock a file until this process closes it; returns whether no other process has locked it.

    Processes forked from this one do not hold the lock. Where locks do not exist, as on some
    network file systems, this returns True and locks nothing.
    """
    if fcntl is None:
        return True
    try:
        fcntl.lockf(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def _sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk, where the file system can do so."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def write_text(file: Path, text: str) -> None:
    """Write a UTF-8 text file whole or not at all; a missing folder is made.

    Raises:
        DiskFullError, OSError: see `open_to_replace`.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    with open_to_replace(file) as stream:
        stream.write(text.encode("utf-8"))


def write_json(file: Path, content: Any) -> None:
    """Write a JSON file whole or not at all; a missing folder is made.

    Raises:
        DiskFullError, OSError: see `open_to_replace`.
    """
    write_text(file, json.dumps(content, indent=1) + "\n")


def is_disk_full(error: Optional[BaseException]) -> bool:
    """Whether a full disk caused an error, directly or through the errors it was raised from."""
    # torch's error about a broken zip file does not mention the disk; the error before it does.
    while error is not None:
        if isinstance(error, DiskFullError) or getattr(error, "errno", None) == errno.ENOSPC:
            return True
        error = error.__cause__ or error.__context__
    return False


def describe_full_disk(file: Path, num_bytes: int = 0) -> str:
    """Error text for a file that did not fit on the disk: the file, the free space, the fix."""
    free = shutil.disk_usage(file.parent).free
    needed = ""
    if num_bytes:
        needed = f"needs about {num_bytes / 1e6:.1f} MB, and "
    return (
        f"the disk is full: {file} could not be written ({needed}{free / 1e6:.1f} MB are free in "
        f"{file.parent}). Files saved before are complete; make room, then run the command again "
        "(training: with --resume)"
    )
