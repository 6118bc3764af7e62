"""Files on a full disk, or written only in part: the earlier file stays."""

import os
import signal
import subprocess
import sys

import pytest
import torch

from focal_det import files
from focal_det.files import DiskFullError, open_to_replace, remove_parts, write_text


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


def test_a_file_that_another_process_takes_for_left_over_is_begun_again(tmp_path, monkeypatch):
    """Between its creation and its lock, a new file looks like that of a killed process."""
    lock = files._lock
    removed = []

    def lock_late(stream):
        if not removed:
            removed.append(stream.name)
            remove_parts(tmp_path)
        return lock(stream)

    monkeypatch.setattr(files, "_lock", lock_late)
    with open_to_replace(tmp_path / "model.pth") as stream:
        stream.write(b"whole")
    assert removed and (tmp_path / "model.pth").read_bytes() == b"whole"
    assert [x.name for x in tmp_path.iterdir()] == ["model.pth"]


def test_full_disk_leaves_the_file_before_and_no_part(small_disk):
    file = small_disk / "model.pth"
    torch.save({"x": torch.zeros(1000)}, file)
    before = file.read_bytes()
    message = r"model\.pth could not be written \(.* MB are free"
    with pytest.raises(DiskFullError, match=message), open_to_replace(file) as stream:
        torch.save({"x": torch.zeros(8_000_000)}, stream)
    assert file.read_bytes() == before and len(list(small_disk.iterdir())) == 1


WRITE = """
import sys, time
from pathlib import Path
from focal_det.files import open_to_replace
with open_to_replace(Path(sys.argv[1])) as stream:
    stream.write(b"half")
    stream.flush()
    print("writing", flush=True)
    time.sleep(600)
"""


def test_killed_writer_leaves_the_file_before_and_nothing_else(tmp_path):
    file = tmp_path / "model[1].pth"
    write_text(file, "before")
    command = [sys.executable, "-c", WRITE, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout.readline() == b"writing\n"
        # What a living process writes is left alone.
        remove_parts(tmp_path)
        assert len(list(tmp_path.iterdir())) == 2
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
    assert file.read_text() == "before" and len(list(tmp_path.iterdir())) == 2
    write_text(file, "after")
    assert file.read_text() == "after" and list(tmp_path.iterdir()) == [file]


def test_link_is_replaced_and_its_target_stays(tmp_path):
    target = tmp_path / "target"
    target.write_text("of somebody else")
    file = tmp_path / "file"
    file.symlink_to(target)
    write_text(file, "ours")
    assert target.read_text() == "of somebody else" and not file.is_symlink()


def test_too_little_room_is_found_before_writing(small_disk):
    message = r"needs about 100\.0 MB, and 2\d\.\d MB are free"
    file = small_disk / "model.pth"
    with pytest.raises(DiskFullError, match=message), open_to_replace(file, num_bytes=10**8):
        raise AssertionError("nothing is written")
