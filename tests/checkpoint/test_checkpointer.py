"""The checkpoints that HealthyCheckpointer saves."""

import pytest
import torch

from focal_det.checkpoint.checkpointer import HealthyCheckpointer, load_all_weights
from focal_det.checkpoint.weights_file import WeightsError


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


@pytest.mark.parametrize("name", ["0.bias", "0.running_mean"])
def test_trained_model_without_a_part_is_refused(name, tmp_path):
    """The statistics of a norm are a part of it, although training does not need them."""
    state = torch.nn.Sequential(torch.nn.BatchNorm2d(2)).state_dict()
    del state[name]
    file = tmp_path / "w.pth"
    torch.save(state, file)
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(2))
    with pytest.raises(WeightsError, match=f"{name} is not in the file"):
        load_all_weights(model, str(file))
    HealthyCheckpointer(model).resume_or_load(str(file), resume=False)


def test_integers_in_place_of_floats_are_refused(tmp_path):
    file = tmp_path / "w.pth"
    torch.save({"weight": torch.ones(2, 2).int(), "bias": torch.ones(2)}, file)
    checkpointer = HealthyCheckpointer(torch.nn.Linear(2, 2))
    message = "weight is torch.int32 in the file and torch.float32 in the model"
    with pytest.raises(WeightsError, match=message):
        checkpointer.resume_or_load(str(file), resume=False)
    torch.save({"weight": torch.ones(2, 2).half(), "bias": torch.ones(2).double()}, file)
    checkpointer = HealthyCheckpointer(torch.nn.Linear(2, 2))
    checkpointer.resume_or_load(str(file), resume=False)
    assert checkpointer.num_matched == 2
