"""One message when a run's disk is full, instead of a traceback from every writer."""

import functools
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from focal_det.files import DiskFullError, describe_full_disk, is_disk_full

_FILE_LOGGERS = ("detectron2", "fvcore")  # their handlers write log.txt
_TRAIN_LOOP_LOGGER = "detectron2.engine.train_loop"  # logs the exception that ends a run


@contextmanager
def report_full_disk_once(folder: Path) -> Iterator[None]:
    """Let a full disk end the block with a single DiskFullError, however many writers hit it.

    Otherwise Detectron2 logs the run's exception with its traceback, TensorBoard's thread prints
    one, and logging prints one for every record that it cannot write.

    Args:
        folder: where the block writes its files.

    Raises:
        DiskFullError: in place of any other OSError about a full disk.
    """
    logger = logging.getLogger(_TRAIN_LOOP_LOGGER)
    handlers = {x for name in _FILE_LOGGERS for x in logging.getLogger(name).handlers}
    _silence_threads()
    logger.addFilter(_is_about_something_else)
    for handler in handlers:
        # On the instance, not on the class: other handlers of the process report as before.
        report = functools.partial(_handle_error, handler)
        handler.handleError = report  # type: ignore[method-assign]  # no other hook
    try:
        yield
    except OSError as error:
        if isinstance(error, DiskFullError) or not is_disk_full(error):
            raise
        # Probably metrics.json, which Detectron2 keeps open; a checkpoint raises DiskFullError.
        raise DiskFullError(describe_full_disk(folder / "metrics.json")) from None
    finally:
        logger.removeFilter(_is_about_something_else)
        for handler in handlers:
            del handler.handleError


def _silence_threads() -> None:
    """Keep threads from printing tracebacks about a full disk, until the process ends.

    TensorBoard's thread may write until then, so the hook is never removed.
    """
    report = threading.excepthook

    def report_others(args: threading.ExceptHookArgs) -> None:
        if not is_disk_full(args.exc_value):
            report(args)

    threading.excepthook = report_others


def _is_about_something_else(record: logging.LogRecord) -> bool:
    """Log filter that drops records whose exception is about a full disk."""
    return not (record.exc_info and is_disk_full(record.exc_info[1]))


def _handle_error(handler: logging.Handler, record: logging.LogRecord) -> None:
    """`Handler.handleError`, but silent if the disk is full."""
    if not is_disk_full(sys.exc_info()[1]):
        type(handler).handleError(handler, record)
