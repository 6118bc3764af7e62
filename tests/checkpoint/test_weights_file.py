"""Files of weights: read without running code, and named where they hold something else."""

import os
import pickle
import re
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from focal_det.checkpoint.checkpointer import HealthyCheckpointer
from focal_det.checkpoint.weights_file import WeightsError, read_weights
from focal_det.tools.train import main as train
from tests.faults.copies import refuse_train, run_check


class RunsCode:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.makedirs, (self.folder,)


def write(file, content):
    """A file of weights as a person may have it."""
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif file.suffix == ".pkl":
        file.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, file)
    return file


def load(cfg, file):
    model = build_model(cfg)
    checkpointer = HealthyCheckpointer(model)
    checkpointer.load(str(file))
    return model, checkpointer


# --- code


@pytest.mark.parametrize("suffix", [".pkl", ".pth"])
def test_weights_cannot_run_code_in_train_or_check(suffix, digits, capsys, tmp_path):
    made = tmp_path / "made"
    file = write(tmp_path / f"weights{suffix}", {"model": RunsCode(made), "__author__": "x"})
    config = digits.write_config(MODEL__WEIGHTS=str(file))
    code, output = run_check(config, capsys)
    assert code == 2 and re.search("can run any code|could run code", output)
    with pytest.raises(SystemExit) as error:
        train(["--no-check", "--config-file", str(config)])
    assert error.value.code == 2 and "makedirs" in capsys.readouterr().err
    assert not made.exists()


# --- forms that must load


def as_arrays(model):
    return {k: v.numpy() for k, v in model.state_dict().items()}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("container", [dict, OrderedDict])
def test_file_in_the_zoos_format_loads(protocol, container, make_cfg, tmp_path):
    source = build_model(make_cfg())
    content = {"model": container(as_arrays(source)), "__author__": "Detectron2 Model Zoo"}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(content, protocol=protocol))
    model, checkpointer = load(make_cfg(), tmp_path / "zoo.pkl")
    assert checkpointer.num_matched == checkpointer.num_tensors
    for got, want in zip(model.parameters(), source.parameters()):
        assert torch.equal(got, want)


def test_arrays_of_python_2_load(tmp_path):
    """Detectron's own models are pickles of Python 2, whose text is bytes."""
    content = (
        b"\x80\x02}q\x00U\x05blobsq\x01}q\x02U\x01wq\x03cnumpy.core.multiarray\n_reconstruct\n"
    )
    content += b"q\x04cnumpy\nndarray\nq\x05K\x00\x85U\x01b\x87Rq\x06(K\x01K\x01\x85cnumpy\ndtype\n"
    content += b"q\x07U\x02f4K\x00K\x01\x87Rq\x08(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK"
    content += b"\x00tb\x89U\x04\x00\x00\x80?tbss."
    (tmp_path / "old.pkl").write_bytes(content)
    loaded = read_weights(str(tmp_path / "old.pkl"))
    assert loaded["matching_heuristics"] and loaded["__author__"] == "Caffe2"
    np.testing.assert_array_equal(loaded["model"]["w"], np.ones(1, dtype=np.float32))


def test_momentum_of_old_zoos_is_left_out(tmp_path):
    blobs = {"w": np.ones(2), "w_momentum": np.ones(2)}
    file = write(tmp_path / "old.pkl", {"blobs": blobs})
    assert list(read_weights(str(file))["model"]) == ["w"]


def test_file_of_pycls_loads(tmp_path):
    state = {"stem.w": torch.ones(2), "stem.num_batches_tracked": torch.tensor(1)}
    file = write(tmp_path / "regnet.pyth", {"model_state": state})
    assert list(read_weights(str(file))["model"]) == ["stem.w"]


def test_plain_state_dict_loads(make_cfg, tmp_path):
    file = write(tmp_path / "plain.pth", build_model(make_cfg()).state_dict())
    _, checkpointer = load(make_cfg(), file)
    assert checkpointer.num_matched == checkpointer.num_tensors


# --- files that hold no weights

PAGE = b"<!DOCTYPE html>\n<html><body>404: not found</body></html>"
NOT_WEIGHTS = {
    "html": ("w.pth", PAGE, "it is an HTML page"),
    "html_pkl": ("w.pkl", PAGE, "it is an HTML page"),
    "text": ("w.pth", b"see the wiki for the weights\n", "it is a text file that begins with 'see"),
    "text_pkl": (
        "w.pkl",
        b"see the wiki for the weights\n",
        "it is damaged, cut off or of another",
    ),
    "empty": ("w.pth", b"", r"it is empty \(0 bytes\)"),
    "lfs": ("w.pth", b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
    "list": ("w.pth", [torch.zeros(2)], "it holds a list, not tensors by name"),
    "list_pkl": ("w.pkl", [np.zeros(2)], "it holds a list, not tensors by name"),
    "tensor": ("w.pth", torch.zeros(2), "it holds a Tensor, not tensors by name"),
    "number": ("w.pth", 3.5, "it holds a float, not tensors by name"),
    "number_pkl": ("w.pkl", 3, "it holds a int, not tensors by name"),
    "numbers": ("w.pth", {"a": 1.0}, "it holds no tensors by name: a"),
    "model_list": ("w.pth", {"model": [1]}, "its 'model' is a list, not a mapping"),
    "cut_off": ("w.pth", b"PK\x03\x04" + bytes(range(256)), "it is damaged, cut off or of another"),
    "text_safetensors": ("w.safetensors", b"see the wiki", "it is a text file that begins with"),
    "nan": ("w.pth", "nan", "1 of its tensors contain NaN or infinity: head.cls_score.bias"),
    "nan_pkl": ("w.pkl", "nan", "1 of its tensors contain NaN or infinity: head.cls_score.bias"),
}


@pytest.mark.parametrize("name, content, message", NOT_WEIGHTS.values(), ids=NOT_WEIGHTS)
def test_file_without_weights_is_named(name, content, message, digits, capsys, tmp_path):
    config = digits.write_config()
    if content == "nan":
        from focal_det.env import load_config

        content = build_model(load_config(config)).state_dict()
        content["head.cls_score.bias"][3] = float("nan")
        if name.endswith(".pkl"):
            arrays = {k: v.numpy() for k, v in content.items()}
            content = {"model": arrays, "__author__": "somebody"}
    file = write(tmp_path / name, content)
    config = digits.write_config(MODEL__WEIGHTS=str(file))
    code, output = run_check(config, capsys)
    assert code == 2 and output.count(str(file)) == 1 and "WeightsError" not in output
    assert "weights that cannot be loaded" in output and "Correct MODEL.WEIGHTS" in output
    with pytest.raises(WeightsError, match=f"^MODEL.WEIGHTS {file}: {message}"):
        HealthyCheckpointer(torch.nn.Linear(1, 1)).resume_or_load(str(file), resume=False)


@pytest.mark.parametrize("case", ["html", "text", "list", "number", "list_pkl", "number_pkl"])
def test_train_names_file_without_weights_and_its_key(case, digits, capsys, tmp_path):
    name, content, message = NOT_WEIGHTS[case]
    file = write(tmp_path / name, content)
    refusal = refuse_train(capsys, digits.write_config(MODEL__WEIGHTS=str(file)))
    assert f"MODEL.WEIGHTS {file}: {message}" in refusal and "Traceback" not in refusal


def rewrite(file, compression):
    """The same zip file with other members' compression."""
    with zipfile.ZipFile(file) as archive:
        members = [(x.filename, archive.read(x)) for x in archive.infolist()]
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)


def test_compressed_weights_are_refused(tmp_path):
    """A few megabytes of them can fill the memory."""
    file = tmp_path / "weights.pth"
    torch.save({"model": {"x": torch.zeros(1_000_000)}}, file)
    rewrite(file, zipfile.ZIP_STORED)
    assert read_weights(str(file))["model"]["x"].shape == (1_000_000,)
    rewrite(file, zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 20_000
    with pytest.raises(WeightsError, match="it is compressed"):
        read_weights(str(file))


def test_changed_byte_is_found_wherever_it_is(tmp_path):
    """Most of all in a weight, which torch itself reads without complaint."""
    file = tmp_path / "weights.pth"
    weight = torch.arange(64.0)
    torch.save({"model": {"x": weight}}, file)
    data = file.read_bytes()
    start = data.index(weight.numpy().tobytes())
    places_found = set()
    for place in range(0, len(data), 3):
        changed = bytearray(data)
        changed[place] ^= 64
        file.write_bytes(changed)
        try:
            read = read_weights(str(file))["model"]["x"]
        except WeightsError:
            places_found.add(place)
        else:
            assert torch.equal(read, weight), place
    assert places_found >= {x for x in range(start, start + 256) if x % 3 == 0}
    changed = bytearray(data)
    changed[start + 1] ^= 64
    file.write_bytes(changed)
    assert not torch.equal(torch.load(file, weights_only=True)["model"]["x"], weight)
