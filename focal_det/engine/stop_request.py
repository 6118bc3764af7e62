"""Signals that ask a run to stop: noted at once, obeyed where nothing is lost."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Optional

from detectron2.utils import comm

# Of a cluster, a terminal (Ctrl+C), a job scheduler before the end of the time, a closed terminal.
_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
# The same Ctrl+C may come from the terminal and from the parent process.
_SECONDS_OF_ONE_REQUEST = 1.0
_STDERR = 2


def get_stop_signals() -> list[signal.Signals]:
    """The signals that ask a run to stop, as far as this system has them and does not ignore them.

    A process under `nohup`, for instance, ignores SIGHUP.
    """
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    return [x for x in numbers if signal.getsignal(x) != signal.SIG_IGN]


class RunStopped(SystemExit):
    """A run that was asked to stop has done so; ends the process with the code 128 + signal.

    Not an Exception: Detectron2 would log a traceback.
    """


class StopRequest:
    """What the signals of this process have asked for.

    Attributes:
        number: of the signal that asks the run to stop after its step; 0 if none has come.
    """

    def __init__(self) -> None:
        self._forget()

    def _forget(self) -> None:
        self.number = 0
        self._time = 0.0
        self._can_stop_here = False
        self._is_saving = False
        self._is_urgent = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals that come during the block. Only the main thread gets any."""
        self._forget()
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {x: signal.signal(x, self._note) for x in get_stop_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        now = time.monotonic()
        if not self.number:
            self.number = number
            self._time = now
            if self._can_stop_here:
                self.stop()
            self._tell()
        elif now - self._time > _SECONDS_OF_ONE_REQUEST:
            self._is_urgent = True
            if not self._is_saving:
                self._stop_at_once()

    def _tell(self) -> None:
        if comm.is_main_process():
            name = signal.Signals(self.number).name
            text = f"{name}: stopping after this step, with a checkpoint. Again: at once\n"
            # Not logged: the signal may have interrupted the logger, which holds a lock.
            os.write(_STDERR, text.encode())

    def stop(self) -> None:
        """Leave the run with the exit code of the signal.

        Raises:
            RunStopped: always.
        """
        raise RunStopped(128 + self.number)

    def _stop_at_once(self) -> None:
        for worker in multiprocessing.active_children():
            worker.kill()
        # Not an exception: the main thread may wait for other processes forever.
        os._exit(128 + self.number)

    @contextmanager
    def can_stop_here(self, can_stop: bool) -> Iterator[None]:
        """Let a signal stop the run within the block, as in an evaluation, which takes long.

        Args:
            can_stop: False to go on as if there were no block.

        Raises:
            RunStopped: in the block; or at its start, for a signal that came before.
        """
        if not can_stop:
            yield
            return
        self._can_stop_here = True
        try:
            if self.number:
                self.stop()
            yield
        finally:
            self._can_stop_here = False

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Let no signal stop the block, which writes a file."""
        can_stop_here, self._can_stop_here = self._can_stop_here, False
        self._is_saving = True
        try:
            yield
        finally:
            self._is_saving = False
            self._can_stop_here = can_stop_here
        if self._is_urgent:
            self._stop_at_once()


STOP_REQUEST = StopRequest()
