"""Which checkpoint a run resumes from where `last_checkpoint` does not say."""

import pytest
import torch

from focal_det.checkpoint.last import find_last_checkpoint
from focal_det.checkpoint.weights_file import WeightsError


def test_newest_checkpoint_is_by_iteration_and_readable(tmp_path):
    for name, iteration in (("model_final", 9), ("model_0000004", 4), ("model_0000019", 19)):
        torch.save(
            {"model": {"x": torch.zeros(1)}, "iteration": iteration}, tmp_path / f"{name}.pth"
        )
    assert find_last_checkpoint(tmp_path).file.name == "model_0000019.pth"
    (tmp_path / "model_0000019.pth").write_bytes(b"PK cut off")
    assert find_last_checkpoint(tmp_path).file.name == "model_final.pth"


def test_weights_in_the_folder_are_not_a_checkpoint(tmp_path):
    torch.save({"model": {"x": torch.zeros(1)}}, tmp_path / "model_zoo.pth")
    with pytest.raises(WeightsError, match=r"model_zoo\.pth is skipped: it holds weights"):
        find_last_checkpoint(tmp_path)
    torch.save({"model": {"x": torch.zeros(1)}, "iteration": 3}, tmp_path / "model_0000003.pth")
    assert find_last_checkpoint(tmp_path).file.name == "model_0000003.pth"


def save(folder, name, iteration, value=0.0):
    content = {"model": {"x": torch.full((1000,), value)}, "iteration": iteration}
    torch.save(content, folder / f"{name}.pth")


def test_tagged_checkpoint_is_taken_before_newer_ones(tmp_path):
    save(tmp_path, "model_0000001", 1)
    save(tmp_path, "model_0000003", 3)
    (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    assert find_last_checkpoint(tmp_path).file.name == "model_0000001.pth"


@pytest.mark.parametrize("tag", ["../other/model_0000001.pth", "/etc/passwd", "."])
def test_tag_names_only_files_of_its_folder(tag, tmp_path):
    save(tmp_path, "model_0000001", 1)
    (tmp_path / "other").mkdir()
    save(tmp_path / "other", "model_0000001", 1)
    (tmp_path / "last_checkpoint").write_text(tag)
    assert find_last_checkpoint(tmp_path).file == tmp_path / "model_0000001.pth"


def test_nonfinite_checkpoint_is_skipped(tmp_path):
    save(tmp_path, "model_0000001", 1)
    save(tmp_path, "model_0000003", 3, value=float("nan"))
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    assert find_last_checkpoint(tmp_path).file.name == "model_0000001.pth"
