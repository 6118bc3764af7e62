"""From a config to the parts of a detector, and to the settings that programs ask for.

Only `focal_det.config` and this package refer to Detectron2's config nodes of a detector; all other
code reads `DetectorSettings`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import getitem
from typing import Any, Union

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    GeneralizedRCNN,
    RetinaNet,
    build_anchor_generator,
)
from detectron2.modeling.matcher import Matcher

from focal_det.losses import ClsLoss
from focal_det.losses.base import get_priors
from focal_det.losses.normalizers import Normalizer
from focal_det.messages import UnknownNameError, describe_unknown
from focal_det.registry import (
    ASSIGNER_REGISTRY,
    CLS_LOSS_REGISTRY,
    NORMALIZER_REGISTRY,
    ComponentRegistry,
)

from .assigners import Assigner
from .stage_losses import check_stage

# Loss arguments that already have a key in Detectron2.
RETINANET_ARGS = {
    "alpha": "FOCAL_LOSS_ALPHA",
    "gamma": "FOCAL_LOSS_GAMMA",
    "num_classes": "NUM_CLASSES",
}
# The same for the stages of a two-stage detector.
STAGE_ARGS = ("num_classes", "batch_size_per_image")
# Keys read at inference only, which may change when a run is resumed.
INFERENCE_KEYS = (
    "MODEL.RETINANET.NMS_THRESH_TEST",
    "MODEL.RETINANET.SCORE_THRESH_TEST",
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "MODEL.RPN.POST_NMS_TOPK_TEST",
    "MODEL.RPN.PRE_NMS_TOPK_TEST",
)
_NODES = {RetinaNet: "MODEL.RETINANET", GeneralizedRCNN: "MODEL.ROI_HEADS"}


@dataclass(frozen=True)
class DetectorSettings:
    """Settings of the detector that a config describes, whichever node holds them.

    Attributes:
        node_key: full key of its node, such as "MODEL.RETINANET"; empty for an architecture that is
            neither a RetinaNet nor a GeneralizedRCNN.
        node: the values below that key.
    """

    node_key: str
    node: Mapping[str, Any]

    @property
    def is_dense(self) -> bool:
        """Whether it is a RetinaNet."""
        return self.node_key == _NODES[RetinaNet]

    @property
    def has_two_stages(self) -> bool:
        """Whether it is a GeneralizedRCNN, which classifies the proposals of a first stage."""
        return self.node_key == _NODES[GeneralizedRCNN]

    @property
    def num_classes_key(self) -> str:
        """Full key of the number of classes; empty if the architecture is not known."""
        if not self.node_key:
            return ""
        return self.get_key("NUM_CLASSES")

    @property
    def num_classes(self) -> int:
        """K, background not counted; 0 if the architecture is not known."""
        num_classes: int = self.node.get("NUM_CLASSES", 0)
        return num_classes

    @property
    def alpha(self) -> float:
        """Weight of the positives; -1 for no weighting."""
        alpha: float = self._read("FOCAL_LOSS_ALPHA")
        return alpha

    def get_key(self, name: str) -> str:
        """Full key of a value of the node."""
        return f"{self.node_key}.{name}"

    def _read(self, name: str) -> Any:
        """A value that only a RetinaNet has.

        Raises:
            ValueError: the architecture is another one.
        """
        if not self.is_dense:
            raise ValueError(
                f"MODEL.META_ARCHITECTURE must be FocalRetinaNet or another RetinaNet here: only "
                f"a RetinaNet has {name}"
            )
        return self.node[name]


def read_settings(cfg: CfgNode) -> DetectorSettings:
    """Settings of the detector of a config."""
    name = cfg.MODEL.META_ARCHITECTURE
    architecture = None
    if name in META_ARCH_REGISTRY:
        architecture = META_ARCH_REGISTRY.get(name)
    # By base class, so that a project's own subclass is recognized.
    for known, key in _NODES.items():
        if isinstance(architecture, type) and issubclass(architecture, known):
            return DetectorSettings(key, get_value(cfg, key))
    return DetectorSettings("", {})


def build_cls_loss(cfg: CfgNode) -> ClsLoss:
    """Build `MODEL.FOCAL_DET.CLS_LOSS`.

    Raises:
        ValueError: an unknown name (UnknownNameError) or argument, or a value that the component
            refuses; names the key.
    """
    # Offered to every loss; the registry passes on what the constructor takes.
    known = {arg: cfg.MODEL.RETINANET[key] for arg, key in RETINANET_ARGS.items()}
    return _build_cls_loss(cfg, "CLS_LOSS", **known)


def build_normalizer(cfg: CfgNode) -> Normalizer:
    """Build `MODEL.FOCAL_DET.NORMALIZER`; errors as for `build_cls_loss`."""
    normalizer: Normalizer = _build(NORMALIZER_REGISTRY, "NORMALIZER", cfg)
    if normalizer.of_samples:
        raise ValueError(
            f"MODEL.FOCAL_DET.NORMALIZER: {type(normalizer).__name__} divides by the size of a "
            "sample, but a RetinaNet trains on all anchors; choose one that counts positives"
        )
    return normalizer


def build_assigner(cfg: CfgNode) -> Assigner:
    """Build `MODEL.FOCAL_DET.ASSIGNER`; errors as for `build_cls_loss`."""
    shapes = [ShapeSpec(stride=1) for _ in cfg.MODEL.RETINANET.IN_FEATURES]
    known = {
        "matcher": build_matcher(cfg),
        "num_classes": cfg.MODEL.RETINANET.NUM_CLASSES,
        # All levels have as many, or the head could not share its weights.
        "anchors_per_cell": build_anchor_generator(cfg, shapes).num_anchors[0],
    }
    assigner: Assigner = _build(ASSIGNER_REGISTRY, "ASSIGNER", cfg, **known)
    return assigner


def build_matcher(cfg: CfgNode) -> Matcher:
    """Detectron2's matcher with the thresholds of a RetinaNet."""
    node = cfg.MODEL.RETINANET
    return Matcher(node.IOU_THRESHOLDS, node.IOU_LABELS, cfg.MODEL.FOCAL_DET.LOW_QUALITY_MATCHES)


def get_prior_prob(cfg: CfgNode) -> Union[float, Sequence[float]]:
    """Prior probability of a config, one for all classes or one for each.

    Raises:
        ValueError: outside (0, 1), or not one per class; names the key.
    """
    per_class = cfg.MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS
    key = "MODEL.RETINANET.PRIOR_PROB"
    prior: Union[float, Sequence[float]] = cfg.MODEL.RETINANET.PRIOR_PROB
    if per_class:
        key = "MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS"
        prior = per_class
    try:
        # For its checks alone; the head computes the priors again.
        get_priors(prior, cfg.MODEL.RETINANET.NUM_CLASSES)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    return prior


def build_stage(cfg: CfgNode, stage: str) -> dict[str, Any]:
    """What `MODEL.FOCAL_DET.<stage>` says of a stage of a two-stage detector.

    Args:
        stage: "RPN" or "ROI_BOX_HEAD".

    Returns:
        Arguments of FocalRPN and FocalFastRCNNOutputLayers: "cls_loss", "normalizer", "prior_prob",
        "sampling", "batch_size_per_image" and "telemetry_period".

    Raises:
        ValueError: as for `build_cls_loss`, or settings that do not fit together; names the key.
    """
    key = f"MODEL.FOCAL_DET.{stage}"
    node = cfg.MODEL.FOCAL_DET[stage]
    # An RPN tells objects from background, whatever their classes are.
    num_classes = 1
    num_logits = 1
    batch_size_per_image = cfg.MODEL.RPN.BATCH_SIZE_PER_IMAGE
    prior_prob: Union[float, Sequence[float]] = node.PRIOR_PROB
    if stage == "ROI_BOX_HEAD":
        num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        num_logits = num_classes + 1
        batch_size_per_image = cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
        prior_prob = cfg.MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS or prior_prob
    known = {"num_classes": num_classes, "batch_size_per_image": batch_size_per_image}
    args = {
        "cls_loss": _build_cls_loss(cfg, f"{stage}.CLS_LOSS", **known),
        "normalizer": _build(NORMALIZER_REGISTRY, f"{stage}.NORMALIZER", cfg, **known),
        "prior_prob": prior_prob,
        "sampling": node.SAMPLING,
        "batch_size_per_image": batch_size_per_image,
    }
    try:
        check_stage(**args, num_classes=num_classes, num_logits=num_logits)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    return {**args, "telemetry_period": cfg.MODEL.FOCAL_DET.TELEMETRY_PERIOD}


def get_value(cfg: CfgNode, key: str) -> Any:
    """The value of a full key."""
    return reduce(getitem, key.split("."), cfg)


def flatten_config(node: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their full keys, from a config or from the mapping of a dumped config."""
    values: dict[str, Any] = {}
    for key, value in node.items():
        if isinstance(value, Mapping):
            values.update(flatten_config(value, f"{prefix}{key}."))
        else:
            values[prefix + key] = value
    return values


def check_finite(cfg: CfgNode) -> None:
    """Refuse NaN and infinity, which yaml allows and training notices after a step or never.

    Raises:
        ValueError: names the keys.
    """
    wrong = find_not_finite(cfg)
    if wrong:
        shown = ", ".join(f"{key} {value}" for key, value in wrong.items())
        raise ValueError(f"the config has numbers that are not finite: {shown}")


def find_not_finite(cfg: CfgNode) -> dict[str, Any]:
    """Keys whose values are or contain NaN or infinity, with these values."""
    wrong = {key: value for key, value in flatten_config(cfg).items() if not _is_finite(value)}
    # The order of a norm may be infinite.
    return {k: v for k, v in wrong.items() if not (k.endswith("NORM_TYPE") and v == math.inf)}


def _is_finite(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def _build_cls_loss(cfg: CfgNode, key: str, *, num_classes: int, **known: Any) -> ClsLoss:
    cls_loss: ClsLoss = _build(CLS_LOSS_REGISTRY, key, cfg, num_classes=num_classes, **known)
    # A loss made for another K would fail in the head, with an error that does not name the key.
    try:
        cls_loss.num_outputs(num_classes)
    except ValueError as error:
        raise ValueError(f"MODEL.FOCAL_DET.{key}: {error}") from error
    return cls_loss


def _build(registry: ComponentRegistry, key: str, cfg: CfgNode, **known: Any) -> Any:
    """Build the component that a node of MODEL.FOCAL_DET names, with its ARGS.

    Args:
        key: of the node below MODEL.FOCAL_DET, such as "RPN.NORMALIZER".
    """
    node = get_value(cfg.MODEL.FOCAL_DET, key)
    # Unselected names are checked, too: a typo in one of them would otherwise never show.
    for name in node.ARGS:
        if name not in registry:
            kind = f"{registry.kind} in MODEL.FOCAL_DET.{key}.ARGS"
            raise UnknownNameError(describe_unknown(kind, name, dict(registry)))
    try:
        return registry.build(node.NAME, node.ARGS.get(node.NAME, {}), **known)
    except ValueError as error:
        # The same type, as callers tell unknown names from bad values.
        raise type(error)(f"MODEL.FOCAL_DET.{key}: {error.args[0]}") from error
