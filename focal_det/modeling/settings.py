"""What a config says of the stages of a detector: their anchors, samples, losses and classes.

A RetinaNet has one stage, which classifies anchors. A two-stage detector has two: its RPN tells
objects from background among anchors, and its box head classifies proposals. Programs read these
settings here, for parts of Detectron2 and of focal_det alike.

Shapes: K classes, C = `cls_loss.num_outputs(K)` logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
from detectron2.config import CfgNode
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator import RPN
from detectron2.modeling.proposal_generator.rrpn import RRPN
from detectron2.modeling.roi_heads import CascadeROIHeads, Res5ROIHeads, StandardROIHeads
from torch import Tensor

from focal_det.losses import ClsLoss, FocalLoss, SoftmaxFocalLoss
from focal_det.losses.normalizers import Normalizer, SampleCount, SampleSize
from focal_det.registry import CLS_LOSS_REGISTRY, get_constructor_args

from .build import build_cls_loss, build_normalizer, build_stage, get_prior_prob, read_settings
from .parts import PROPOSAL_GENERATOR, ROI_HEADS, find_readers, get_keys_read, get_part
from .stage_losses import Prior, make_bias

# Detectron2's own, whose loss is known. A subclass may have another loss.
_STOCK_HEADS = (StandardROIHeads, Res5ROIHeads, CascadeROIHeads)
# Keys of MODEL.ROI_BOX_HEAD in Detectron2's main branch, for losses other than cross entropy.
_OTHER_LOSSES = ("USE_SIGMOID_CE", "USE_FED_LOSS")
_PRIOR_KEY = "MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS"


@dataclass(frozen=True)
class AnchorSettings:
    """Which anchors a detector has, and what decides their labels.

    Attributes:
        level_names: of the feature maps that have anchors.
        level_names_key: full key of these names.
        iou_thresholds, iou_labels, has_low_quality_matches: of Detectron2's matcher.
        reach_thresh: smallest IoU at which an anchor reaches a box, see `_read_rpn_anchors`.
        boundary_thresh: pixels by which anchors may extend beyond the image; others are ignored.
            Negative for no limit.
    """

    level_names: Sequence[str]
    level_names_key: str
    iou_thresholds: Sequence[float]
    iou_labels: Sequence[int]
    has_low_quality_matches: bool
    reach_thresh: float
    boundary_thresh: int = -1

    def build_matcher(self) -> Matcher:
        """Detectron2's matcher, as the detector has it."""
        return Matcher(self.iou_thresholds, self.iou_labels, self.has_low_quality_matches)


@dataclass(frozen=True)
class LossSettings:
    """How the classification loss of a stage is computed.

    Attributes:
        cls_loss: sums it per image.
        normalizer: supplies its divisor.
        prior_prob: foreground probability at the start; 0 for a bias of 0.
        bias: (C,) logits at the start.
        weight: factor of the loss in the metrics.
    """

    cls_loss: ClsLoss
    normalizer: Normalizer
    prior_prob: Prior
    bias: Tensor
    weight: float = 1.0


@dataclass(frozen=True)
class StageSettings:
    """A stage of a detector: what it classifies, from which sample, with which loss.

    Attributes:
        title: for people.
        boxes: what it classifies, "anchors" or "proposals".
        loss_name: of its classification loss in the metrics.
        num_classes: K; 1 for an RPN, which is blind to classes.
        key: full key of its node below MODEL.FOCAL_DET; empty if it reads none.
        sampling: "random", "hard" or "none".
        sample_size: anchors or proposals of an image in a sample; 0 without sampling.
        positive_fraction: largest share of positives in a random sample.
        loss: None if it is not known.
    """

    title: str
    boxes: str
    loss_name: str
    num_classes: int
    key: str = ""
    sampling: str = "none"
    sample_size: int = 0
    positive_fraction: float = 1.0
    loss: Optional[LossSettings] = None

    @property
    def max_positives(self) -> int:
        """Largest number of positives in the random sample of an image."""
        return int(self.sample_size * self.positive_fraction)


@dataclass(frozen=True)
class ClassSettings:
    """Where a config has alpha and the prior pi per class, and the scalars that these replace.

    Attributes:
        alpha_key: full key of alpha per class; empty if the loss takes none.
        scalar_alpha_key: key of the one alpha for all classes, for messages.
        alpha: its value; -1 for no weighting.
        prior_key: full key of pi per class; empty if there is no pi.
        prior: the one pi for all classes.
        total_prior: foreground probability at the start, of all classes together; None if pi per
            class is measured, as the share of the anchors that are positive.
        missing: why a key is empty, for people.
    """

    alpha_key: str
    scalar_alpha_key: str
    alpha: float
    prior_key: str
    prior: float
    total_prior: Optional[float] = None
    missing: Sequence[str] = ()


def read_anchors(cfg: CfgNode) -> Optional[AnchorSettings]:
    """Anchors of a RetinaNet or of an RPN; None for other detectors."""
    settings = read_settings(cfg)
    if settings.is_dense:
        return _read_retinanet_anchors(cfg)
    # Not those of an RRPN, which are rotated.
    part = get_part(cfg, PROPOSAL_GENERATOR)
    if not settings.node_key or not issubclass(part, RPN) or issubclass(part, RRPN):
        return None
    return _read_rpn_anchors(cfg)


def _read_retinanet_anchors(cfg: CfgNode) -> AnchorSettings:
    node = cfg.MODEL.RETINANET
    return AnchorSettings(
        level_names=node.IN_FEATURES,
        level_names_key="MODEL.RETINANET.IN_FEATURES",
        iou_thresholds=node.IOU_THRESHOLDS,
        iou_labels=node.IOU_LABELS,
        has_low_quality_matches=cfg.MODEL.FOCAL_DET.LOW_QUALITY_MATCHES,
        reach_thresh=max(node.IOU_THRESHOLDS, default=0.0),
    )


def _read_rpn_anchors(cfg: CfgNode) -> AnchorSettings:
    """An anchor reaches a box at the IoU from which the box head takes proposals as positive.

    An RPN asks for more, 0.7 by default. As the sides of Detectron2's anchors double from level to
    level, half of all square boxes reach 0.7 with no anchor and train on their best anchor alone.
    """
    node = cfg.MODEL.RPN
    thresholds = (node.IOU_THRESHOLDS, cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS)
    return AnchorSettings(
        level_names=node.IN_FEATURES,
        level_names_key="MODEL.RPN.IN_FEATURES",
        iou_thresholds=node.IOU_THRESHOLDS,
        iou_labels=node.IOU_LABELS,
        # As in Detectron2, which has no key for it.
        has_low_quality_matches=True,
        reach_thresh=min(max(x, default=0.0) for x in thresholds),
        boundary_thresh=node.BOUNDARY_THRESH,
    )


def read_stages(cfg: CfgNode) -> list[StageSettings]:
    """The stages of a detector whose anchors are known; first the one that classifies them.

    Raises:
        ValueError: a loss or normalizer that cannot be built; names the key.
    """
    if read_settings(cfg).is_dense:
        return [_read_retinanet(cfg)]
    return [_read_rpn(cfg), _read_box_head(cfg)]


def _read_retinanet(cfg: CfgNode) -> StageSettings:
    num_classes = cfg.MODEL.RETINANET.NUM_CLASSES
    cls_loss = build_cls_loss(cfg)
    prior = get_prior_prob(cfg)
    bias = cls_loss.bias(prior, num_classes)
    return StageSettings(
        title="RetinaNet",
        boxes="anchors",
        loss_name="loss_cls",
        num_classes=num_classes,
        loss=LossSettings(cls_loss, build_normalizer(cfg), prior, bias),
    )


def _read_rpn(cfg: CfgNode) -> StageSettings:
    part = get_part(cfg, PROPOSAL_GENERATOR)
    node = cfg.MODEL.RPN
    loss = None
    if "RPN" in get_keys_read(part):
        loss = _build_loss(cfg, "RPN", num_classes=1, weight=node.LOSS_WEIGHT)
    elif part is RPN:
        loss = LossSettings(
            cls_loss=FocalLoss(alpha=-1.0, gamma=0.0),
            normalizer=SampleSize(batch_size_per_image=node.BATCH_SIZE_PER_IMAGE),
            prior_prob=0.5,
            bias=torch.zeros(1),
            weight=node.LOSS_WEIGHT,
        )
    return StageSettings(
        title="RPN",
        boxes="anchors",
        loss_name="loss_rpn_cls",
        num_classes=1,
        loss=loss,
        **_read_sample(cfg, "RPN", part, node),
    )


def _read_box_head(cfg: CfgNode) -> StageSettings:
    part = get_part(cfg, ROI_HEADS)
    node = cfg.MODEL.ROI_HEADS
    loss = None
    if "ROI_BOX_HEAD" in get_keys_read(part):
        loss = _build_loss(cfg, "ROI_BOX_HEAD", num_classes=node.NUM_CLASSES)
    elif part in _STOCK_HEADS and not any(cfg.MODEL.ROI_BOX_HEAD.get(x) for x in _OTHER_LOSSES):
        loss = LossSettings(
            cls_loss=SoftmaxFocalLoss(alpha=-1.0, gamma=0.0),
            normalizer=SampleCount(),
            prior_prob=0.0,
            bias=torch.zeros(node.NUM_CLASSES + 1),
        )
    loss_name = "loss_cls"
    # Of a cascade's losses, the first: the limits of the sample hold for this stage alone.
    if issubclass(part, CascadeROIHeads):
        loss_name = "loss_cls_stage0"
    return StageSettings(
        title="ROI head",
        boxes="proposals",
        loss_name=loss_name,
        num_classes=node.NUM_CLASSES,
        loss=loss,
        **_read_sample(cfg, "ROI_BOX_HEAD", part, node),
    )


def _build_loss(cfg: CfgNode, stage: str, *, num_classes: int, weight: float = 1.0) -> LossSettings:
    built = build_stage(cfg, stage)
    return LossSettings(
        cls_loss=built["cls_loss"],
        normalizer=built["normalizer"],
        prior_prob=built["prior_prob"],
        bias=make_bias(built["cls_loss"], built["prior_prob"], num_classes),
        weight=weight,
    )


def _read_sample(cfg: CfgNode, stage: str, part: type, node: CfgNode) -> dict[str, Any]:
    """Key and sample of a StageSettings; Detectron2's own parts have no key and a random sample."""
    key = ""
    sampling = "random"
    if stage in get_keys_read(part):
        key = f"MODEL.FOCAL_DET.{stage}"
        sampling = cfg.MODEL.FOCAL_DET[stage].SAMPLING
    return {
        "key": key,
        "sampling": sampling,
        "sample_size": 0 if sampling == "none" else node.BATCH_SIZE_PER_IMAGE,
        "positive_fraction": node.POSITIVE_FRACTION,
    }


def read_class_settings(cfg: CfgNode) -> ClassSettings:
    """Settings of alpha and pi per class, for the stage that tells classes apart.

    Raises:
        ValueError: as for `read_stages`.
    """
    if read_settings(cfg).is_dense:
        # Losses other than FocalLoss do not take this alpha; programs that write it say so.
        return ClassSettings(
            alpha_key="MODEL.FOCAL_DET.CLS_LOSS.ARGS.FocalLoss.alpha_per_class",
            scalar_alpha_key="FOCAL_LOSS_ALPHA",
            alpha=cfg.MODEL.RETINANET.FOCAL_LOSS_ALPHA,
            prior_key=_PRIOR_KEY,
            prior=cfg.MODEL.RETINANET.PRIOR_PROB,
        )
    missing = (
        f"MODEL.META_ARCHITECTURE is {cfg.MODEL.META_ARCHITECTURE}: only RetinaNets and the "
        "ROI heads of focal_det take numbers per class"
    )
    if read_settings(cfg).node_key:
        if "ROI_BOX_HEAD" in get_keys_read(get_part(cfg, ROI_HEADS)):
            return _read_box_head_classes(cfg)
        missing = (
            f"{ROI_HEADS} is {cfg.MODEL.ROI_HEADS.NAME}, which takes no numbers per class: choose "
            f"{' or '.join(find_readers(ROI_HEADS, 'ROI_BOX_HEAD'))}"
        )
    return ClassSettings("", "", -1.0, "", 0.0, missing=(missing,))


def _read_box_head_classes(cfg: CfgNode) -> ClassSettings:
    key = "MODEL.FOCAL_DET.ROI_BOX_HEAD"
    node = cfg.MODEL.FOCAL_DET.ROI_BOX_HEAD
    name = node.CLS_LOSS.NAME
    cls_loss = build_stage(cfg, "ROI_BOX_HEAD")["cls_loss"]
    bias = make_bias(cls_loss, node.PRIOR_PROB, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    missing = []
    alpha_key = ""
    takers = [x for x, loss in CLS_LOSS_REGISTRY if "alpha_per_class" in get_constructor_args(loss)]
    if name in takers:
        alpha_key = f"{key}.CLS_LOSS.ARGS.{name}.alpha_per_class"
    else:
        missing.append(
            f"{key}.CLS_LOSS.NAME is {name}, which takes no alpha per class: choose "
            f"{' or '.join(takers)}"
        )
    prior_key = ""
    if node.PRIOR_PROB:
        prior_key = _PRIOR_KEY
    else:
        missing.append(f"{key}.PRIOR_PROB is 0, a bias of 0: no pi to divide among classes")
    return ClassSettings(
        alpha_key=alpha_key,
        scalar_alpha_key=f"{key}.CLS_LOSS.ARGS.{name}.alpha",
        alpha=node.CLS_LOSS.ARGS.get(name, {}).get("alpha", -1.0),
        prior_key=prior_key,
        prior=node.PRIOR_PROB,
        # The scores sum to K times pi for sigmoids, and to pi for a softmax.
        total_prior=float(cls_loss.scores(bias).sum()),
        missing=missing,
    )
