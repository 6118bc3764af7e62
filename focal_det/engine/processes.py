"""Processes of a run end together: the ranks and the process that started them."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_SECONDS_TO_END = 5.0  # for a process to obey SIGTERM before it is killed


def end_with_parent() -> None:
    """End this process and its data workers when its parent ends or sends SIGTERM.

    Without it, the ranks of a run survive as orphans when their parent is killed, and the data
    workers of a rank that gets SIGTERM stay for seconds. Does nothing in a process that
    `multiprocessing` has not started.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait_for_parent() -> None:
        parent.join()
        _end()

    signal.signal(signal.SIGTERM, lambda number, frame: _end())
    threading.Thread(target=wait_for_parent, name="end_with_parent", daemon=True).start()


def _end() -> None:
    for worker in multiprocessing.active_children():
        worker.kill()
    # Not sys.exit: the main thread may wait for other ranks forever.
    os._exit(1)


@contextmanager
def end_children_on_error() -> Iterator[None]:
    """End the processes started in the block when an exception, or an interrupt, leaves it.

    Without it, `multiprocessing` waits for them when the interpreter ends.
    """
    others = set(multiprocessing.active_children())
    try:
        yield
    except BaseException:
        children = set(multiprocessing.active_children()) - others
        # All at once, so that they do not wait for each other in a collective operation.
        for child in children:
            child.terminate()
        for child in children:
            child.join(_SECONDS_TO_END)
            child.kill()
        raise
