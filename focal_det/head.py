"""The RetinaNet head whose number of outputs and initial bias are those of a classification loss."""

import focal_det.host  # noqa: F401  (first: says how to get Detectron2)

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead

from focal_det.losses import ClsLoss


class FocalRetinaNetHead(RetinaNetHead):
    """Detectron2's RetinaNetHead with C = `cls_loss.num_outputs(K)` logits per anchor, started at the loss's prior bias.

    Parameter names are those of the stock head. `forward` returns per level the logits (N, A*C, Hi, Wi) and the box deltas
    (N, A*4, Hi, Wi).

    Args:
        cls_loss: decides the number of outputs and their initial bias; not kept.
        num_classes: K, background not counted.
        num_anchors: A, anchors per cell.
        prior_prob: foreground probability at the start, in (0, 1); `MODEL.RETINANET.PRIOR_PROB`.
        head_args: the other arguments of RetinaNetHead: `input_shape`, `conv_dims`, `norm`.
    """

    @configurable
    def __init__(self, *, cls_loss: ClsLoss, num_classes: int, num_anchors: int, prior_prob: float = 0.01, **head_args) -> None:
        bias = cls_loss.bias(prior_prob, num_classes)
        num_outputs = cls_loss.num_outputs(num_classes)
        super().__init__(num_classes=num_outputs, num_anchors=num_anchors, prior_prob=prior_prob, **head_args)
        with torch.no_grad():
            self.cls_score.bias.copy_(bias.repeat(num_anchors))

    @classmethod
    def from_config(cls, cfg, input_shape: list[ShapeSpec]) -> dict:
        return super().from_config(cfg, input_shape)
