"""The model zoo: complete entries, the recorded file, and functions that do as Detectron2's do."""

import hashlib
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2 import model_zoo as stock
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.evaluation import verify_results
from detectron2.utils.file_io import PathManager
from torch.testing import assert_close

from focal_det import model_zoo
from focal_det.checkpoint.checkpointer import HealthyCheckpointer
from focal_det.checkpoint.weights_file import WeightsError
from focal_det.env import setup_environment
from focal_det.model_zoo.path_handler import is_download
from tests.conftest import run_python

DIGITS = "digits/focal_retinanet_tiny.yaml"
NAME = "focal-det://digits/focal_retinanet_tiny"
KEYS = {"origin", "file", "url", "sha256", "note"}
KEYS |= {"command", "commit", "date", "seeds", "trained_on", "device", "versions"}
KEYS |= {"evaluated_on", "figures", "AP_per_class"}
KEYS |= {"seconds_per_iter", "seconds_per_image", "memory_gb"}
ZOO = model_zoo.read_zoo()


@pytest.mark.parametrize("config_path", ZOO)
def test_an_entry_is_complete(config_path):
    entry = ZOO[config_path]
    assert set(entry) == KEYS and Path(model_zoo.get_config_file(config_path)).is_file()
    assert entry["origin"] in ("trained here", "converted", "Detectron2 zoo")
    assert entry["file"] or entry["url"]
    assert set(entry["figures"]) == {"AP", "AP50", "AP75", "APs", "APm", "APl"}
    assert 0 < entry["figures"]["AP"] < 100
    if entry["origin"] == "trained here":
        assert len(entry["commit"]) == 40
        assert entry["command"] and entry["sha256"] and entry["versions"]["torch"]


@pytest.mark.parametrize(
    "config_path", [x for x, entry in ZOO.items() if entry["origin"] == "Detectron2 zoo"]
)
def test_detectron2s_checkpoints_are_where_detectron2_says(config_path):
    theirs = config_path.replace("focal_retinanet", "retinanet")
    url = stock.get_checkpoint_url(theirs)
    assert model_zoo.get_checkpoint_url(config_path) == url
    assert url == model_zoo.get_config(config_path, trained=True).MODEL.WEIGHTS


def test_the_shipped_file_is_small_safe_and_the_recorded_one():
    file = Path(model_zoo.get_checkpoint_url(DIGITS))
    assert file.stat().st_size <= 5e6
    assert hashlib.sha256(file.read_bytes()).hexdigest() == ZOO[DIGITS]["sha256"]
    assert set(torch.load(file, weights_only=True)) == {"model"}


def test_a_model_comes_with_its_weights():
    trained, new = (model_zoo.get(DIGITS, trained=x) for x in (True, False))
    saved = torch.load(model_zoo.get_checkpoint_url(DIGITS), weights_only=True)["model"]
    assert all(
        torch.equal(value, saved[name].to(value.dtype))
        for name, value in trained.state_dict().items()
    )
    assert trained.training and not torch.equal(
        trained.head.cls_score.weight, new.head.cls_score.weight
    )


def test_a_lazy_config_has_the_checkpoint_of_its_yaml():
    lazy = model_zoo.get_config("COCO-Detection/focal_retinanet_R_50_FPN_1x.py", trained=True)
    assert (
        lazy.train.init_checkpoint == ZOO["COCO-Detection/focal_retinanet_R_50_FPN_1x.yaml"]["url"]
    )


def test_own_folder_comes_first_and_damage_is_refused(tmp_path, monkeypatch):
    file = Path(model_zoo.get_checkpoint_url(DIGITS))
    shutil.copy(file, tmp_path)
    monkeypatch.setenv("FOCAL_DET_ZOO", str(tmp_path))
    copy = tmp_path / file.name
    assert model_zoo.get_checkpoint_url(DIGITS) == str(copy)
    content = bytearray(copy.read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content)
    with pytest.raises(
        RuntimeError, match=rf"{copy} has the sha256 \w+, but zoo.json has {ZOO[DIGITS]['sha256']}"
    ):
        model_zoo.get(DIGITS, trained=True)


def test_a_config_without_a_model_is_named():
    with pytest.raises(RuntimeError, match=r"no trained model for COCO-Detection.*Did you mean"):
        model_zoo.get_checkpoint_url("COCO-Detection/focal_retinanet_R_101_FPN_1x.yaml")


@pytest.mark.slow
def test_the_shipped_model_has_its_accuracy(tmp_path):
    """By Detectron2's TEST.EXPECTED_RESULTS: another figure ends the program with an error."""
    expected = [
        ["bbox", name, ZOO[DIGITS]["figures"][name], 0.2] for name in ("AP", "AP50", "AP75")
    ]
    words = ["-m", "focal_det.tools.train", "--eval-only"]
    words += ["--config-file", model_zoo.get_config_file(DIGITS)]
    words += ["MODEL.WEIGHTS", model_zoo.get_checkpoint_url(DIGITS), "OUTPUT_DIR", tmp_path]
    _, output = run_python(*words, "TEST.EXPECTED_RESULTS", expected)
    assert "Results verification passed" in output
    cfg = model_zoo.get_config(DIGITS)
    cfg.TEST.EXPECTED_RESULTS = [["bbox", "AP", 90.0, 1.0]]
    with pytest.raises(SystemExit):
        verify_results(cfg, {"bbox": {"AP": 56.0}})


def test_a_file_without_a_recorded_hash_is_reported(tmp_path, monkeypatch, caplog):
    config_path = "COCO-Detection/focal_retinanet_R_50_FPN_1x.yaml"
    file = tmp_path / ZOO[config_path]["url"].rsplit("/", 1)[-1]
    file.write_bytes(b"any")
    monkeypatch.setenv("FOCAL_DET_ZOO", str(tmp_path))
    assert model_zoo.get_checkpoint_url(config_path) == str(file)
    assert f"zoo.json has no sha256 of {file}" in caplog.text


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    setup_environment()
    return tmp_path


def test_weights_are_named_as_in_the_zoo(cache):
    assert PathManager.get_local_path(NAME) == model_zoo.get_checkpoint_url(DIGITS)
    whole = model_zoo.get(DIGITS, trained=True)
    model = model_zoo.get(DIGITS)
    HealthyCheckpointer(model).load(NAME)
    assert_close(dict(model.state_dict()), dict(whole.state_dict()), rtol=0, atol=0)


def test_a_part_of_a_model_starts_another(cache):
    whole = model_zoo.get(DIGITS, trained=True)
    model = model_zoo.get(DIGITS)
    before = {name: value.clone() for name, value in model.head.state_dict().items()}
    DetectionCheckpointer(model).load(f"{NAME}#backbone")
    assert_close(model.backbone.state_dict(), whole.backbone.state_dict(), rtol=0, atol=0)
    assert_close(dict(model.head.state_dict()), before, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (f"{NAME}#body", "has no module 'body', only backbone, head"),
        (f"{NAME}x", "no trained model for digits/focal_retinanet_tinyx.yaml. .*Did you mean"),
        (f"{NAME}x.yaml#backbone", "no trained model for digits/focal_retinanet_tinyx.yaml. "),
    ],
)
def test_a_wrong_name_in_the_zoo_is_explained(cache, name, message):
    with pytest.raises(WeightsError, match=message):
        HealthyCheckpointer(model_zoo.get(DIGITS)).load(name)


def test_what_would_be_downloaded_is_known_by_its_name():
    names = [x for x in ZOO if ZOO[x]["url"]]
    assert names and all(is_download(f"focal-det://{x.removesuffix('.yaml')}") for x in names)
    assert is_download("detectron2://x.pkl") and is_download("https://x.org/x.pth")
    assert not any(map(is_download, (NAME, f"{NAME}#backbone", "focal-det://x", "x.pth", "")))


def test_a_part_of_detectron2s_checkpoint_starts_another(cache, tmp_path, monkeypatch):
    """These are pickles of arrays."""
    config_path = "COCO-Detection/focal_retinanet_R_50_FPN_1x.yaml"
    file = tmp_path / "zoo" / ZOO[config_path]["url"].rsplit("/", 1)[-1]
    file.parent.mkdir()
    model = {
        "backbone.fpn_lateral3.bias": np.ones(3, np.float32),
        "head.bbox_pred.bias": np.ones(4),
    }
    file.write_bytes(pickle.dumps({"model": model, "__author__": "Detectron2 Model Zoo"}))
    monkeypatch.setenv("FOCAL_DET_ZOO", str(file.parent))
    name = f"focal-det://{config_path.removesuffix('.yaml')}#backbone"
    part = torch.load(PathManager.get_local_path(name), weights_only=True)["model"]
    assert list(part) == ["backbone.fpn_lateral3.bias"]


def test_a_cache_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    (tmp_path / "focal_det").write_text("a file in the folder's place")
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path))
    with pytest.raises(OSError, match=r"FVCORE_CACHE can name another folder for .*_backbone\.pth"):
        PathManager.get_local_path(f"{NAME}#backbone")


def test_a_model_of_the_zoo_is_not_written_to(cache):
    with pytest.raises(ValueError, match="mode 'w' must be 'r' or 'rb'"):
        PathManager.open(NAME, "w")
    with PathManager.open(NAME, "rb") as stream:
        assert stream.read(2) == b"PK"
