"""Any convolutional classifier of torchvision as a backbone, alone or below a feature pyramid.

`MODEL.BACKBONE.NAME "build_torchvision_fpn_backbone"` and a name in
`MODEL.FOCAL_DET.TORCHVISION_BACKBONE`, such as "mobilenet_v2", select it; `MODEL.WEIGHTS
"torchvision://MobileNet_V2_Weights.IMAGENET1K_V1"` starts from its ImageNet weights.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
import torchvision
from detectron2.config import CfgNode, configurable
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelP6P7
from torch import Tensor, nn
from torchvision.ops.misc import Conv2dNormActivation

from focal_det.messages import describe_unknown

_Build = TypeVar("_Build", bound=Callable[..., Backbone])

NORMS = ("FrozenBN", "BN", "SyncBN", "GN")
_NUM_STAGES = 5
_MAX_GROUPS = 32
# Side, in pixels, of the image that measures strides.
_PROBE_SIDE = 2 ** (_NUM_STAGES + 1)


@dataclass(frozen=True)
class Block:
    """One of the modules that a classifier runs one after another.

    Attributes:
        name: in the classifier, such as "features.6".
        stage: log2 of the stride of its output.
        channels: of its output.
    """

    name: str
    stage: int
    channels: int

    @property
    def feature(self) -> str:
        """Name of a feature map of this stride."""
        return f"res{self.stage}"


class TorchvisionBackbone(Backbone):
    """The feature maps of a classifier of torchvision.

    They have the names of Detectron2's ResNet, from "res1" (stride 2) to "res5" (stride 32). Each
    is the output of the last block at its stride, except for a 1x1 convolution that widens the last
    map for the classifier. Names of parameters are those of torchvision, after "body.". It cannot
    be scripted.
    """

    @configurable  # type: ignore[untyped-decorator]  # Detectron2 has no annotations
    def __init__(
        self,
        name: str,
        *,
        norm: str = "FrozenBN",
        freeze_at: int = 0,
        out_features: Sequence[str] = ("res3", "res4", "res5"),
    ) -> None:
        """
        Args:
            name: of a classifier, as for `torchvision.models.get_model`.
            norm: replaces BatchNorm. "FrozenBN" keeps the statistics of the weights, "BN"
                trains, "SyncBN" trains with the statistics of all processes, and "GN" is
                GroupNorm, for training from scratch.
            freeze_at: stages that are not trained, from 0 to 5; the first one ends at stride 2.
            out_features: names of feature maps.

        Raises:
            ValueError: torchvision has no such classifier, or it lacks one of the feature maps; or
                another argument is out of range.
        """
        super().__init__()
        if norm not in NORMS:
            raise ValueError(
                f"norm (MODEL.RESNETS.NORM) must be one of {', '.join(NORMS)}, got {norm!r}"
            )
        if not 0 <= freeze_at <= _NUM_STAGES:
            raise ValueError(
                f"freeze_at (MODEL.BACKBONE.FREEZE_AT) must be from 0 to {_NUM_STAGES}, got "
                f"{freeze_at}"
            )
        classifier = build_classifier(name)
        blocks = _find_blocks_up_to(out_features, classifier, name)
        self.body = _make_body(classifier, blocks, norm, freeze_at)
        self._blocks = [x.name for x in blocks]
        # The last block of each stage makes its map.
        last = {x.feature: x for x in blocks}
        self._ends = {last[x].name: x for x in out_features}
        self._out_features = list(out_features)
        self._out_feature_channels = {x: last[x].channels for x in out_features}
        self._out_feature_strides = {x: 2 ** last[x].stage for x in out_features}

    @classmethod
    def from_config(cls, cfg: CfgNode, out_features: Sequence[str]) -> dict[str, Any]:
        return {
            "name": cfg.MODEL.FOCAL_DET.TORCHVISION_BACKBONE,
            "norm": cfg.MODEL.RESNETS.NORM,
            "freeze_at": cfg.MODEL.BACKBONE.FREEZE_AT,
            "out_features": out_features,
        }

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """
        Args:
            images: (N, 3, H, W) normalized, H and W divisible by 32.

        Returns:
            (N, C, H / stride, W / stride) maps by name.
        """
        maps = {}
        x = images
        for name in self._blocks:
            x = self.body.get_submodule(name)(x)
            if name in self._ends:
                maps[self._ends[name]] = x
        return maps


def _register(build: _Build) -> _Build:
    """Let configs select a function that reads TORCHVISION_BACKBONE, see `modeling.parts`."""
    vars(build)["focal_det_keys"] = ("TORCHVISION_BACKBONE",)
    BACKBONE_REGISTRY.register(build)
    return build


@_register
def build_torchvision_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TorchvisionBackbone:
    """The last feature map of a classifier."""
    backbone: TorchvisionBackbone = TorchvisionBackbone(cfg, out_features=["res5"])
    return backbone


@_register
def build_torchvision_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """A pyramid on the maps MODEL.FPN.IN_FEATURES; the last one also makes p6 and p7."""
    names = list(cfg.MODEL.FPN.IN_FEATURES)
    bottom_up = TorchvisionBackbone(cfg, out_features=names)
    channels = bottom_up.output_shape()[names[-1]].channels
    return FPN(
        bottom_up=bottom_up,
        in_features=names,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelP6P7(channels, cfg.MODEL.FPN.OUT_CHANNELS, names[-1]),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def build_classifier(name: str) -> nn.Module:
    """A classifier of torchvision with random weights.

    Raises:
        ValueError: torchvision has none of this name; names the nearest one.
    """
    names = torchvision.models.list_models(module=torchvision.models)
    # Its weights are for pixels that it changes itself, outside its blocks.
    names.remove("googlenet")
    if name not in names:
        raise ValueError(describe_unknown("classifier of torchvision", name, names))
    classifier: nn.Module = torchvision.models.get_model(name, weights=None)
    return classifier


def _find_blocks_up_to(
    out_features: Sequence[str], classifier: nn.Module, name: str
) -> list[Block]:
    """The blocks that some feature maps need."""
    try:
        blocks = find_blocks(classifier)
    except ValueError as error:
        raise ValueError(f"{name} cannot be a backbone: {error}") from None
    last = {x.feature: index for index, x in enumerate(blocks)}
    lacking = [x for x in out_features if x not in last]
    if lacking:
        has = ", ".join(last) or "none"
        raise ValueError(f"{name} has no feature map {', '.join(lacking)}; it has {has}")
    return blocks[: 1 + max(last[x] for x in out_features)]


def _make_body(
    classifier: nn.Module, blocks: Sequence[Block], norm: str, freeze_at: int
) -> nn.Module:
    """Blocks of a classifier under their names, with their norms."""
    body = nn.Module()
    for block in blocks:
        module = classifier.get_submodule(block.name)
        # The first blocks of a VGG have stride 1, and belong to the first stage.
        if freeze_at and block.stage <= freeze_at:
            module.requires_grad_(False)
            module = _replace_norm(module, "FrozenBN")
        _add_submodule(body, block.name, _replace_norm(module, norm))
    return body


def find_blocks(classifier: nn.Module) -> list[Block]:
    """The blocks of a classifier whose outputs are feature maps, in their order.

    They are its children, and the children of those that are sequences.

    Raises:
        ValueError: the blocks do not form a chain, or the classifier refuses the small image that
            measures them.
    """
    blocks: list[Block] = []
    maps = [torch.zeros(1, 3, _PROBE_SIDE, _PROBE_SIDE)]

    def add_block(name: str, module: nn.Module, inputs: tuple[Tensor, ...], output: Any) -> None:
        if not _is_map(output) or _is_for_classifier(module):
            return
        if inputs[0] is not maps[-1]:
            raise ValueError(f"the input of {name} is not the map before it")
        maps.append(output)
        blocks.append(Block(name, int(math.log2(_PROBE_SIDE // output.shape[2])), output.shape[1]))

    handles = [
        module.register_forward_hook(partial(add_block, name))
        for name, module in _list_blocks(classifier)
    ]
    try:
        with torch.no_grad():
            classifier.eval()(maps[0])
    # Raised by classifiers that accept only one image size.
    except (AssertionError, RuntimeError) as error:
        raise ValueError(str(error)) from None
    finally:
        classifier.train()
        for handle in handles:
            handle.remove()
    return blocks


def _list_blocks(classifier: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for name, child in classifier.named_children():
        if not isinstance(child, nn.Sequential):
            yield name, child
            continue
        for index, block in child.named_children():
            yield f"{name}.{index}", block


def _is_map(output: Any) -> bool:
    """Whether the output of a module is a (N, C, H, W) map of stride 1, 2, 4 ... 32."""
    if not isinstance(output, Tensor) or output.ndim != 4:
        return False
    sides = [_PROBE_SIDE // 2**stage for stage in range(_NUM_STAGES + 1)]
    return output.shape[2] in sides and output.shape[2] == output.shape[3]


def _is_for_classifier(block: nn.Module) -> bool:
    """Whether a block is the 1x1 convolution that widens the last map of a small classifier."""
    return isinstance(block, Conv2dNormActivation) and block[0].kernel_size == (1, 1)


def _add_submodule(root: nn.Module, name: str, module: nn.Module) -> None:
    """Add a module by a name such as "features.6"."""
    parent, _, child = name.rpartition(".")
    if parent and not hasattr(root, parent):
        root.add_module(parent, nn.Module())
    root.get_submodule(parent).add_module(child, module)


def _replace_norm(module: nn.Module, norm: str) -> nn.Module:
    """A module with another norm in place of BatchNorm; other norms stay."""
    replaced = module
    if norm == "FrozenBN":
        replaced = FrozenBatchNorm2d.convert_frozen_batchnorm(module)
    elif norm == "SyncBN":
        replaced = nn.SyncBatchNorm.convert_sync_batchnorm(module)
    elif norm == "GN" and isinstance(module, nn.BatchNorm2d):
        replaced = _make_group_norm(module.num_features)
    elif norm == "GN":
        for name, child in module.named_children():
            module.add_module(name, _replace_norm(child, norm))
    return replaced


def _make_group_norm(channels: int) -> nn.GroupNorm:
    """With 32 groups where they divide the channels, as in Detectron2, or else with fewer."""
    groups = max(x for x in range(1, _MAX_GROUPS + 1) if channels % x == 0)
    return nn.GroupNorm(groups, channels)
