"""The writers of a run on a full disk: one error, and no traceback."""

import logging
import os
import threading

import pytest

from focal_det.engine.full_disk import report_full_disk_once
from focal_det.files import DiskFullError


def fill(folder):
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    (folder / "filler").write_bytes(bytes(free))


def test_writers_of_a_run_are_silent_on_a_full_disk(small_disk, capfd):
    logger = logging.getLogger("detectron2")
    handler = logging.FileHandler(small_disk / "log.txt")
    logger.addHandler(handler)
    fill(small_disk)

    def write():
        with open(small_disk / "events", "wb") as stream:
            stream.write(bytes(100_000))

    try:
        with pytest.raises(DiskFullError), report_full_disk_once(small_disk):
            logger.error("x" * 10_000)
            thread = threading.Thread(target=write)
            thread.start()
            thread.join()
            write()
    finally:
        logger.removeHandler(handler)
    output = "".join(capfd.readouterr())
    assert "Traceback" not in output and "Logging error" not in output
