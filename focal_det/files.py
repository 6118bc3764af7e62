"""Files that are complete or not there: what a run saves replaces the file of its name at once."""

import errno
import functools
import logging
import os
import shutil
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Optional

_LOGGERS = ("detectron2", "fvcore")  # that write log.txt


class DiskFullError(OSError):
    """A file could not be written because the disk is full; the message is for a person."""


@contextmanager
def open_to_replace(file: Path) -> Iterator[BinaryIO]:
    """A binary file that gets its name when all of it is on the disk; removed if anything fails before.

    Args:
        file: the final name; a file of that name stays as it is until the new one is complete.

    Raises:
        DiskFullError: the disk is full.
        OSError: it cannot be written.
    """
    part = file.with_name(f"{file.name}.part")
    try:
        with open(part, "wb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(file)
    except BaseException as error:
        part.unlink(missing_ok=True)
        if is_disk_full(error):
            raise DiskFullError(_describe_full_disk(file)) from None
        raise


def is_disk_full(error: Optional[BaseException]) -> bool:
    """Whether an error, or one that it was raised from, is that of a full disk.

    torch's own error, of a zip file that breaks off, does not say why; the one before it does.
    """
    while error is not None:
        if isinstance(error, DiskFullError) or getattr(error, "errno", None) == errno.ENOSPC:
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def report_full_disk_once(folder: Path) -> Iterator[None]:
    """Let a full disk end the block in one DiskFullError, however many writers meet it.

    Detectron2 logs the exception of a run with its traceback, the thread of TensorBoard prints one of
    its own, and so does each log record that cannot be written.

    Args:
        folder: where the files of the block are written.
    """
    in_threads = threading.excepthook
    logger = logging.getLogger("detectron2.engine.train_loop")
    handlers = {x for name in _LOGGERS for x in logging.getLogger(name).handlers}

    def keep(record: logging.LogRecord) -> bool:
        return not (record.exc_info and is_disk_full(record.exc_info[1]))

    def report_in_thread(args: threading.ExceptHookArgs) -> None:
        if not is_disk_full(args.exc_value):
            in_threads(args)

    def report_in_handler(handler: logging.Handler, record: logging.LogRecord) -> None:
        if not is_disk_full(sys.exc_info()[1]):
            type(handler).handleError(handler, record)

    threading.excepthook = report_in_thread
    logger.addFilter(keep)
    for handler in handlers:
        handler.handleError = functools.partial(report_in_handler, handler)
    try:
        yield
    except OSError as error:
        if isinstance(error, DiskFullError) or not is_disk_full(error):
            raise
        raise DiskFullError(_describe_full_disk(folder / "metrics.json")) from None
    finally:
        # Not the hook of threads: TensorBoard's may meet the full disk when the program ends.
        logger.removeFilter(keep)
        for handler in handlers:
            del handler.handleError


def _describe_full_disk(file: Path) -> str:
    free = shutil.disk_usage(file.parent).free
    return (
        f"the disk is full: {file} could not be written ({free / 1e6:.1f} MB are free in "
        f"{file.parent}). Files saved before are complete; make room, then go on with --resume"
    )
