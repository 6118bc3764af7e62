"""Files on a full disk, or written only in part: the earlier file stays."""

import pytest
import torch

from focal_det.files import DiskFullError, open_to_replace


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
