"""Signals that ask a run to stop: noted at once, obeyed where nothing is lost."""

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Optional

from detectron2.utils import comm

# Sent by a cluster, by Ctrl+C, by a job scheduler before the time limit, by a closed terminal.
_NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGHUP")
# Signals within this time are one request: a Ctrl+C comes from the terminal and from the parent.
_SECONDS_OF_ONE_REQUEST = 1.0
_STDERR = 2


def get_stop_signals() -> list[signal.Signals]:
    """The signals that ask a run to stop, without those that this process ignores.

    Under `nohup`, for instance, a process ignores SIGHUP.
    """
    numbers = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    return [x for x in numbers if signal.getsignal(x) != signal.SIG_IGN]


class RunStopped(SystemExit):
    """A run has stopped as asked; the exit code is 128 + signal, or 1 if a process cannot go on.

    Not an Exception, for which Detectron2 would log a traceback.
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
        self._can_stop_here = False
        self._saving = threading.Lock()
        self._numbers: set[signal.Signals] = set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals that come during the block, if it runs in the main thread."""
        self._forget()
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {x: signal.signal(x, self._note) for x in get_stop_signals()}
        self._numbers = set(before)
        # Python calls a handler only after a running operation of torch has returned, which may
        # take long, or forever if it waits for a dead process. A byte in this socket comes at once.
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        fd_before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        try:
            yield
        finally:
            self._numbers = set()
            signal.set_wakeup_fd(fd_before)
            writer.close()
            for number, handler in before.items():
                # After a stop, another signal must not change the exit code.
                signal.signal(number, self._exit if self.number else handler)

    def _exit(self, number: int, frame: Optional[FrameType]) -> None:
        os._exit(128 + self.number)

    def forget_in_child(self) -> None:
        """Undo `listening` in a process forked from this one, such as a data worker."""
        if not self._numbers:
            return
        # The socket is the parent's, which would take the child's signals for its own.
        signal.set_wakeup_fd(-1)
        for number in self._numbers:
            signal.signal(number, signal.SIG_DFL)

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        if self.number:
            return
        self.number = number
        if self._can_stop_here:
            self.stop()
        self._tell()

    def _watch(self, reader: socket.socket) -> None:
        """Stop this process at the second request; runs in a thread."""
        first_time = None
        with reader:
            while received := reader.recv(1):
                if received[0] not in self._numbers:
                    continue
                now = time.monotonic()
                if first_time is None:
                    first_time = now
                elif now - first_time > _SECONDS_OF_ONE_REQUEST:
                    with self._saving:
                        self._stop_at_once(received[0])

    def _tell(self) -> None:
        if comm.is_main_process():
            name = signal.Signals(self.number).name
            text = (
                f"{name}: stopping after this step, with a checkpoint. "
                "A second signal stops at once\n"
            )
            # Not logged: the signal may have interrupted the logger, which holds a lock.
            with contextlib.suppress(OSError):  # the terminal may be gone
                os.write(_STDERR, text.encode())

    def stop(self) -> None:
        """Leave the run with the exit code of the signal.

        Raises:
            RunStopped: always.
        """
        raise RunStopped(128 + self.number)

    def _stop_at_once(self, number: int) -> None:
        for worker in multiprocessing.active_children():
            worker.kill()
        # Not an exception: the main thread may be waiting for other processes, forever.
        os._exit(128 + number)

    @contextmanager
    def can_stop_here(self, can_stop: bool) -> Iterator[None]:
        """Let a signal stop the run inside the block, such as a long evaluation.

        Args:
            can_stop: False for no effect.

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
        """Let no signal stop the run inside the block, which writes a file."""
        can_stop_here = self._can_stop_here
        self._can_stop_here = False
        try:
            with self._saving:
                yield
        finally:
            self._can_stop_here = can_stop_here


STOP_REQUEST = StopRequest()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=STOP_REQUEST.forget_in_child)
