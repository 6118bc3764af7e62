"""RetinaNet head whose number of outputs and initial bias come from a classification loss."""

from collections.abc import Sequence
from typing import Any, Union

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead

from focal_det.host import Norm, get_head_norm
from focal_det.losses import ClsLoss

from .build import get_prior_prob


class FocalRetinaNetHead(RetinaNetHead):
    """Detectron2's RetinaNetHead with the outputs and the initial bias of a classification loss.

    It has C = `cls_loss.num_outputs(K)` logits per anchor. Parameter names are those of the stock
    head. `forward` returns per level the logits (N, A*C, Hi, Wi) and the box deltas
    (N, A*4, Hi, Wi).

    Args:
        cls_loss: decides the number of outputs and their initial bias; not kept.
        num_classes: K, background not counted.
        num_anchors: A, anchors per cell.
        prior_prob: foreground probability at the start, in (0, 1), one for all classes or one for
            each; `MODEL.RETINANET.PRIOR_PROB`, or `MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS`.
        norm: of all convolutions but the last; a name for Detectron2's `get_norm`, or a function of
            the number of channels.
        head_args: the other arguments of RetinaNetHead: `input_shape`, `conv_dims`.
    """

    @configurable  # type: ignore[untyped-decorator]  # Detectron2 has no annotations
    def __init__(
        self,
        *,
        cls_loss: ClsLoss,
        num_classes: int,
        num_anchors: int,
        prior_prob: Union[float, Sequence[float]] = 0.01,
        norm: Norm = "",
        **head_args: Any,
    ) -> None:
        bias = cls_loss.bias(prior_prob, num_classes)
        super().__init__(
            num_classes=cls_loss.num_outputs(num_classes),
            num_anchors=num_anchors,
            norm=get_head_norm(norm),
            **head_args,
        )
        # Kept to measure how far a trained `cls_score` is from its start. Not in checkpoints, whose
        # names stay those of the stock head.
        self.register_buffer("prior_bias", bias.repeat(num_anchors), persistent=False)
        with torch.no_grad():
            self.cls_score.bias.copy_(self.prior_bias)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: list[ShapeSpec]) -> dict[str, Any]:
        args = super().from_config(cfg, input_shape)
        return {**args, "prior_prob": get_prior_prob(cfg)}


def without_head_norm(cfg: CfgNode) -> CfgNode:
    """A copy of a config with which Detectron2's RetinaNet can build its own head.

    That head is not used, but Detectron2 builds it, and 0.6 fails with "GN"; see `get_head_norm`.
    """
    copy = cfg.clone()
    copy.defrost()
    copy.MODEL.RETINANET.NORM = ""
    return copy
