"""Data workers that outlive a signal to the whole run, and end with the run.

Ctrl+C, or a signal from a cluster, also reaches the workers, as they are in the run's process
group. They ignore it because the run still needs them to complete its step.
"""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from multiprocessing.connection import wait
from types import FrameType
from typing import Any, Optional

from torch.utils.data import DataLoader

_GROUP_SIGNALS = ("SIGINT", "SIGHUP", "SIGUSR1")
_SECONDS_TO_DIE = 2.0
_PR_SET_PDEATHSIG = 1  # of <linux/prctl.h>


class DataWorkerError(RuntimeError):
    """A data worker has died; the message says how."""


class DataWorkers:
    """Iterator over a DataLoader; once a worker has died, the next read raises and says how."""

    def __init__(self, loader: DataLoader) -> None:
        others = set(multiprocessing.active_children())
        self._is_reading = False
        self._iterator = iter(loader)
        self._processes = set(multiprocessing.active_children()) - others
        is_main_thread = threading.current_thread() is threading.main_thread()
        if self._processes and is_main_thread and hasattr(signal, "SIGCHLD"):
            # Replaces torch's handler, which may raise in the middle of a step, where the step can
            # neither be completed nor undone.
            signal.signal(signal.SIGCHLD, self._note_end)

    def __next__(self) -> Any:
        self._is_reading = True
        try:
            self._check()
            return next(self._iterator)
        except DataWorkerError:
            raise
        except (OSError, EOFError):  # a broken pipe: wait until its worker is dead
            ending = wait([x.sentinel for x in self._processes], _SECONDS_TO_DIE)
            for process in self._processes:
                # A dying process closes its files, sentinel included, before it has an exit code.
                if process.sentinel in ending:
                    process.join(_SECONDS_TO_DIE)
            self._check()
            raise
        except RuntimeError:  # raised by the loader
            self._check()
            raise
        finally:
            self._is_reading = False

    def _note_end(self, number: int, frame: Optional[FrameType]) -> None:
        # Otherwise a read could wait forever for the rest of what the dead worker was sending.
        if self._is_reading:
            self._check()

    def _check(self) -> None:
        for process in self._processes:
            if process.exitcode:
                raise DataWorkerError(_describe_end(process))


def _describe_end(process: Any) -> str:
    code = process.exitcode
    if code > 0:
        return f"data worker {process.pid} ended with exit code {code}"
    advice = ""
    if code == -signal.SIGKILL:
        advice = ": use fewer workers (DATALOADER.NUM_WORKERS) or smaller images"
    elif code == -signal.SIGBUS:
        advice = ": enlarge /dev/shm, or set DATALOADER.NUM_WORKERS 0"
    return f"data worker {process.pid} was killed by {describe_signal(-code)}{advice}"


def describe_signal(number: int) -> str:
    """The name of a signal that killed a process, and its usual cause."""
    name = signal.Signals(number).name
    if name == "SIGKILL":
        name += ", which the system sends when memory runs out"
    elif name == "SIGBUS":
        name += ", which the system sends when shared memory is too small"
    return name


def start_worker(worker: int) -> None:
    """Set up a new data worker: it ignores signals to its group, and ends with its parent."""
    for name in _GROUP_SIGNALS:
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if sys.platform == "linux":
        _end_by_parent_only()
    end_when_parent_dies()


def _end_by_parent_only() -> None:
    """Obey SIGTERM only from the parent process, where torch uses it to end a hung worker."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # a worker has one
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})

    def wait_for_parent() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent.pid:
            pass
        os._exit(0)

    threading.Thread(target=wait_for_parent, daemon=True).start()


def end_when_parent_dies() -> None:
    """Have the system kill this process when its parent dies, however that happens.

    Works on Linux only, where the system acts once the thread that started this process ends.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
