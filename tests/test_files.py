"""What is left when a disk is full: the last good state, and one line."""

import logging
import os
import threading

import pytest
import torch

from focal_det.files import DiskFullError, open_to_replace, report_full_disk_once


def fill(folder, leave=0):
    """Write a file until only `leave` bytes are free."""
    free = os.statvfs(folder).f_bavail * os.statvfs(folder).f_frsize
    (folder / "filler").write_bytes(bytes(free - leave))


def test_file_appears_when_it_is_complete(tmp_path):
    file = tmp_path / "model.pth"
    file.write_bytes(b"before")
    with open_to_replace(file) as stream:
        stream.write(b"after")
        assert file.read_bytes() == b"before"
    assert file.read_bytes() == b"after"
    with pytest.raises(KeyboardInterrupt), open_to_replace(file) as stream:
        stream.write(b"half")
        raise KeyboardInterrupt
    assert file.read_bytes() == b"after"
    assert [x.name for x in tmp_path.iterdir()] == ["model.pth"]


def test_full_disk_leaves_the_file_before_and_no_part(small_disk):
    file = small_disk / "model.pth"
    torch.save({"x": torch.zeros(1000)}, file)
    before = file.read_bytes()
    message = r"model\.pth could not be written \(.* MB are free"
    with pytest.raises(DiskFullError, match=message), open_to_replace(file) as stream:
        torch.save({"x": torch.zeros(8_000_000)}, stream)
    assert file.read_bytes() == before and len(list(small_disk.iterdir())) == 1


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
