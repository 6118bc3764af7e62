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
        self._can_stop_here = False
        self._saving = threading.Lock()
        self._numbers: set[signal.Signals] = set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals that come during the block. Only the main thread gets any."""
        self._forget()
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {x: signal.signal(x, self._note) for x in get_stop_signals()}
        self._numbers = set(before)
        # Python calls handlers between two of its own steps, which a long operation of torch, or
        # one that waits for a dead process, delays. The bytes of this socket come at once.
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
        # Not an exception: the main thread may wait for other processes forever.
        os._exit(128 + number)

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
