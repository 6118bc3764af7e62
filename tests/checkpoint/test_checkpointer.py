"""The checkpoints that HealthyCheckpointer saves."""

import pytest
import torch

from focal_det.checkpoint.checkpointer import HealthyCheckpointer


@pytest.mark.parametrize("divergence", [None, "it has diverged"])
def test_diverged_checkpoint_is_kept_apart(divergence, tmp_path):
    checkpointer = HealthyCheckpointer(torch.nn.Linear(2, 2), str(tmp_path))
    checkpointer.save("model_0000001")
    checkpointer.find_divergence = lambda: divergence
    checkpointer.save("model_0000003")
    expected = {
        "last_checkpoint",
        "model_0000001.pth",
        "diverged_model_0000003.pth" if divergence else "model_0000003.pth",
    }
    assert {x.name for x in tmp_path.iterdir()} == expected
    assert (tmp_path / "last_checkpoint").read_text() == (
        "model_0000001.pth" if divergence else "model_0000003.pth"
    )
