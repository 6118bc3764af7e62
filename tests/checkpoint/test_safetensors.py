"""Weights in safetensors files, whole and damaged; the format has no checksums."""

import shutil

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from safetensors.torch import save, save_file
from torch import nn

from focal_det import model_zoo
from focal_det.checkpoint.checkpointer import HealthyCheckpointer, load_all_weights
from focal_det.checkpoint.weights_file import WeightsError, read_weights
from focal_det.env import load_config
from focal_det.tools.__main__ import main as focal_det
from tests.engine.runs import find_differences
from tests.faults.copies import refuse_train, run_check, run_train

DIGITS = "digits/focal_retinanet_tiny.yaml"


@pytest.fixture
def trained():
    """Weights of the shipped model of the digits, which is stored in float16."""
    weights = read_weights(model_zoo.get_checkpoint_url(DIGITS))["model"]
    return {k: v.float() if v.is_floating_point() else v for k, v in weights.items()}


def write_trained(file, trained):
    # Contiguous, as the format has no strides.
    tensors = {k: v.contiguous() for k, v in trained.items()}
    save_file(tensors, file, metadata={"format": "pt", "author": "somebody"})
    return file


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth", "w.pkl", "w"])
def test_trained_model_loads_under_any_name(name, trained, tmp_path):
    file = write_trained(tmp_path / name, trained)
    model = build_model(load_config(DIGITS))
    assert load_all_weights(model, str(file)) == {}
    assert find_differences(model.state_dict(), trained) == []


def test_check_and_train_start_from_safetensors(trained, digits, capsys):
    file = write_trained(digits.folder / "w.safetensors", trained)
    config = digits.write_config(
        MODEL__WEIGHTS=str(file), DATASETS__TEST=[], SOLVER__BASE_LR=1e-9, SOLVER__MAX_ITER=1
    )
    _, output = run_check(config, capsys)
    assert "CHK03" not in output and str(file) not in output
    run_train(config)
    (final,) = (digits.folder / "out").glob("model_*.pth")
    now = read_weights(str(final))["model"]
    names = [k for k in now if k.endswith((".weight", ".bias"))]
    assert all(torch.allclose(now[k], trained[k], atol=1e-6) for k in names)


def test_demo_takes_safetensors(trained, digits, tmp_path):
    file = write_trained(tmp_path / "w.safetensors", trained)
    image = min(digits.images.iterdir())
    words = ["demo", str(image), "--output", str(tmp_path / "found")]
    assert not focal_det([*words, "--config-file", DIGITS, "--weights", str(file)])
    assert list((tmp_path / "found").iterdir())


def test_nan_is_found_by_check_and_by_train(trained, digits, capsys):
    trained["head.cls_score.bias"][3] = float("nan")
    file = write_trained(digits.folder / "w.safetensors", trained)
    config = digits.write_config(MODEL__WEIGHTS=str(file))
    message = "1 of its tensors contain NaN or infinity: head.cls_score.bias"
    code, output = run_check(config, capsys)
    assert code == 2 and f"{file}: {message}" in output
    assert f"MODEL.WEIGHTS {file}: {message}" in refuse_train(capsys, config)
    with pytest.raises(WeightsError, match=message):
        load_all_weights(build_model(load_config(DIGITS)), str(file))


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16])
def test_nan_is_found_in_short_floats(dtype, tmp_path):
    file = tmp_path / "w.safetensors"
    save_file({"x": torch.ones(3).to(dtype)}, file)
    load_all_weights(nn.ParameterDict({"x": torch.zeros(3)}), str(file))
    save_file({"x": torch.tensor([1, float("nan"), 2]).to(dtype)}, file)
    with pytest.raises(WeightsError, match="1 of its tensors contain NaN or infinity: x"):
        load_all_weights(nn.ParameterDict({"x": torch.zeros(3)}), str(file))


def test_lacking_batch_counts_are_no_fault(tmp_path):
    model = make_small_model()
    state = {k: v for k, v in model.state_dict().items() if "num_batches" not in k}
    save_file(state, tmp_path / "w.safetensors")
    load_all_weights(make_small_model(), str(tmp_path / "w.safetensors"))


# --- damage


def make_small_model():
    """A model with parameters, statistics that are trained and frozen ones, and a count."""
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm2d(3), FrozenBatchNorm2d(3))
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand_like(tensor) + 0.5)
    model[1].num_batches_tracked.fill_(7)
    return model


def get_header_size(data):
    return 8 + int.from_bytes(data[:8], "little")


@pytest.mark.parametrize("bit", range(8))
def test_flipped_bit_of_the_header_changes_no_weight(bit, tmp_path):
    """Some are harmless: those of the padding, of the metadata and of the batches' count."""
    source = make_small_model()
    want = source.state_dict()
    data = save(want, metadata={"format": "pt"})
    file = tmp_path / "w.safetensors"
    num_refused = 0
    for place in range(get_header_size(data)):
        changed = bytearray(data)
        changed[place] ^= 1 << bit
        file.write_bytes(changed)
        model = make_small_model()
        try:
            load_all_weights(model, str(file))
        except WeightsError as error:
            assert str(file) in str(error)
            num_refused += 1
        else:
            differences = find_differences(model.state_dict(), want)
            assert differences in ([], ["1.num_batches_tracked"]), changed[:place]
    assert num_refused > 0.85 * get_header_size(data)


@pytest.mark.parametrize("kind", ["I32", "U32"])
def test_floats_declared_as_integers_are_refused(kind, tmp_path):
    data = save(make_small_model().state_dict())
    file = tmp_path / "w.safetensors"
    file.write_bytes(data.replace(b'"F32"', f'"{kind}"'.encode(), 1))
    for requires_all in (False, True):
        checkpointer = HealthyCheckpointer(make_small_model())
        checkpointer.requires_all = requires_all
        message = r"\S+ is torch.u?int32 in the file and torch.float32 in the model"
        with pytest.raises(WeightsError, match=message):
            checkpointer.resume_or_load(str(file), resume=False)


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_file_of_another_length_is_refused(name, tmp_path):
    data = save(make_small_model().state_dict(), metadata={"format": "pt"})
    file = tmp_path / name
    for content in (*(data[:size] for size in range(len(data))), data + b"\0"):
        file.write_bytes(content)
        with pytest.raises(WeightsError):
            read_weights(str(file))


def test_damaged_file_is_named_with_its_key(trained, digits, capsys):
    file = write_trained(digits.folder / "w.safetensors", trained)
    file.write_bytes(file.read_bytes()[:-1])
    config = digits.write_config(MODEL__WEIGHTS=str(file))
    message = f"{file}: it is damaged, cut off or of another kind ("
    code, output = run_check(config, capsys)
    assert code == 2 and message in output
    assert f"MODEL.WEIGHTS {message}" in refuse_train(capsys, config)


def test_other_content_under_the_suffix_is_refused(tmp_path):
    torch.save({"model": {"x": torch.ones(2)}}, tmp_path / "w.pth")
    shutil.move(tmp_path / "w.pth", tmp_path / "w.safetensors")
    with pytest.raises(WeightsError, match="it is damaged, cut off or of another kind"):
        read_weights(str(tmp_path / "w.safetensors"))


def test_file_without_tensors_is_refused(tmp_path):
    save_file({}, tmp_path / "w.safetensors", metadata={"format": "pt"})
    with pytest.raises(WeightsError, match="it holds no tensors by name: empty"):
        read_weights(str(tmp_path / "w.safetensors"))
