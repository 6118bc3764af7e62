"""Data workers that die, in ways that a killed one takes rarely."""

import multiprocessing
import os
import signal
import sys
import time

import pytest

from focal_det.engine.data_workers import DataWorkerError, DataWorkers


def die_slowly():
    """Close all files, and be killed some time after, as on a busy machine."""
    os.closerange(3, 256)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


class BrokenPipe:
    """The loader of a worker that dies while it sends an image."""

    def __iter__(self):
        self.worker = multiprocessing.get_context("fork").Process(target=die_slowly)
        self.worker.start()
        return self

    def __next__(self):
        raise EOFError


@pytest.mark.skipif(sys.platform != "linux", reason="workers are forked on Linux only")
def test_worker_whose_files_close_before_it_ends():
    loader = BrokenPipe()
    before = signal.getsignal(signal.SIGCHLD)
    try:
        with pytest.raises(
            DataWorkerError, match=r"data worker \d+ was killed by SIGKILL, which the system sends"
        ):
            next(DataWorkers(loader))
    finally:
        signal.signal(signal.SIGCHLD, before)
        loader.worker.kill()
        loader.worker.join()
