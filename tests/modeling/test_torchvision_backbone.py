"""Classifiers of torchvision as backbones, compared with its own feature extractor."""

import copy

import pytest
import torch
import torchvision
from detectron2.config import LazyCall, instantiate
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from torch import nn
from torch.testing import assert_close
from torchvision.models.feature_extraction import create_feature_extractor

from focal_det.checkpoint.checkpointer import HealthyCheckpointer
from focal_det.env import load_config
from focal_det.modeling.torchvision_backbone import (
    NORMS,
    TorchvisionBackbone,
    build_torchvision_fpn_backbone,
)
from tests.conftest import make_step

# The last nodes of stride 8, 16 and 32, as named by torchvision.
NODES = {
    "mobilenet_v2": ("features.6", "features.13", "features.17"),
    "mobilenet_v3_small": ("features.3", "features.8", "features.11"),
    "efficientnet_b0": ("features.3", "features.5", "features.7"),
    "resnet18": ("layer2", "layer3", "layer4"),
    "regnet_y_400mf": ("trunk_output.block2", "trunk_output.block3", "trunk_output.block4"),
    "convnext_tiny": ("features.3", "features.5", "features.7"),
    "shufflenet_v2_x0_5": ("stage2", "stage3", "conv5"),
    "densenet121": ("features.denseblock2", "features.denseblock3", "features.norm5"),
    "vgg11_bn": ("features.20", "features.27", "features.28"),
}
FEATURES = ("res3", "res4", "res5")
KEYS = (
    *("MODEL.BACKBONE.NAME", "build_torchvision_fpn_backbone"),
    *("MODEL.FOCAL_DET.TORCHVISION_BACKBONE", "mobilenet_v3_small"),
)


def make_config(*words):
    return load_config("digits/focal_retinanet_tiny.yaml", [*KEYS, *words])


def change_statistics(model):
    """As training would: neutral ones cannot tell a norm from none."""
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2)


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
@pytest.mark.parametrize("name", NODES)
def test_maps_equal_those_of_torchvision(name, norm):
    classifier = torchvision.models.get_model(name, weights=None).eval()
    change_statistics(classifier)
    backbone = TorchvisionBackbone(name, norm=norm)
    found = backbone.body.load_state_dict(classifier.state_dict(), strict=False)
    assert not found.missing_keys
    backbone.eval()
    extractor = create_feature_extractor(classifier, dict(zip(NODES[name], FEATURES)))
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        maps = backbone(images)
        # FrozenBN adds a constant to a product, which rounds differently.
        assert_close(maps, extractor(images), rtol=1e-5, atol=1e-5)
    for feature, spec in backbone.output_shape().items():
        assert maps[feature].shape == (2, spec.channels, 96 // spec.stride, 64 // spec.stride)


@pytest.mark.parametrize("name", NODES)
def test_a_detector_trains_and_its_weights_load_again(name, tmp_path):
    cfg = make_config("MODEL.FOCAL_DET.TORCHVISION_BACKBONE", name)
    model = build_model(cfg)
    make_step(model, num_classes=10)
    HealthyCheckpointer(model, str(tmp_path)).save("model")
    again = build_model(cfg)
    HealthyCheckpointer(again).load(str(tmp_path / "model.pth"))
    assert_close(dict(again.state_dict()), dict(model.state_dict()), rtol=0, atol=0)


def test_a_pyramid_can_begin_at_stride_4():
    cfg = make_config("MODEL.FPN.IN_FEATURES", "['res2', 'res3', 'res4', 'res5']")
    pyramid = build_torchvision_fpn_backbone(cfg, None)
    strides = {name: spec.stride for name, spec in pyramid.output_shape().items()}
    assert strides == {f"p{level}": 2**level for level in range(2, 8)}


@pytest.mark.parametrize("norm", NORMS)
def test_the_first_stages_are_frozen_and_the_others_have_their_norm(norm):
    backbone = TorchvisionBackbone("resnet18", norm=norm, freeze_at=2)
    kinds = {"BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm, "GN": nn.GroupNorm}
    kind = kinds.get(norm, FrozenBatchNorm2d)
    for stage in ("conv1", "bn1", "layer1"):
        module = getattr(backbone.body, stage)
        assert not any(x.requires_grad for x in module.parameters())
        norms = [x for x in module.modules() if "Norm" in type(x).__name__]
        assert all(isinstance(x, FrozenBatchNorm2d) for x in norms)
    for stage in ("layer2", "layer3", "layer4"):
        module = getattr(backbone.body, stage)
        assert all(x.requires_grad for x in module.parameters())
        norms = [x for x in module.modules() if "Norm" in type(x).__name__]
        assert len(norms) == 5 and all(isinstance(x, kind) for x in norms)


def test_nothing_is_frozen_unless_asked_for():
    """The first blocks of a VGG have stride 1."""
    assert all(x.requires_grad for x in TorchvisionBackbone("vgg11_bn").parameters())
    frozen = TorchvisionBackbone("vgg11_bn", freeze_at=1)
    assert not any(x.requires_grad for x in frozen.body.get_submodule("features.0").parameters())


def test_group_norm_takes_any_number_of_channels():
    backbone = TorchvisionBackbone("mobilenet_v2", norm="GN")
    maps = backbone(torch.randn(1, 3, 64, 64))
    assert all(x.isfinite().all() for x in maps.values())
    assert not any(isinstance(x, nn.BatchNorm2d) for x in backbone.modules())


def test_a_copy_changes_between_training_and_inference():
    """EfficientNet drops blocks at random in training alone."""
    backbone = copy.deepcopy(TorchvisionBackbone("efficientnet_b0"))
    images = torch.randn(1, 3, 64, 64)
    first, second = (backbone.train()(images)["res5"] for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (backbone.eval()(images)["res5"] for _ in range(2))
    assert torch.equal(first, second)


def test_a_lazy_config_builds_it():
    backbone = instantiate(LazyCall(TorchvisionBackbone)(name="resnet18", out_features=["res4"]))
    assert list(backbone.output_shape()) == ["res4"]
    # Nothing that comes after the last map.
    assert not hasattr(backbone.body, "layer4")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "mobilenet_v4",
            {},
            "Unknown classifier of torchvision 'mobilenet_v4'. Did you mean 'mobile",
        ),
        ("vit_b_16", {}, "vit_b_16 cannot be a backbone: .*Expected 224"),
        (
            "swin_t",
            {},
            "swin_t cannot be a backbone: the input of permute is not the map before it",
        ),
        ("inception_v3", {}, "inception_v3 cannot be a backbone: "),
        ("alexnet", {}, "alexnet has no feature map res3, res4, res5; it has none"),
        (
            "convnext_tiny",
            {"out_features": ["res1", "res3"]},
            "no feature map res1; it has res2, r",
        ),
        ("googlenet", {}, "Unknown classifier of torchvision 'googlenet'"),
        (
            "resnet18",
            {"norm": "LN"},
            r"norm \(MODEL.RESNETS.NORM\) must be one of FrozenBN, BN, SyncBN, GN, got 'LN'",
        ),
        (
            "resnet18",
            {"freeze_at": 6},
            r"freeze_at \(MODEL.BACKBONE.FREEZE_AT\) must be from 0 to 5, got 6",
        ),
    ],
)
def test_what_cannot_be_built_is_explained(name, changes, message):
    with pytest.raises(ValueError, match=message):
        TorchvisionBackbone(name, **changes)
