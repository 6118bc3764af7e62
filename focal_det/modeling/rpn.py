"""FocalRPN: Detectron2's RPN with a choice of losses, normalizers and sampling.

Detectron2 labels objects 1 and background 0. `StageLosses` labels objects 0, the only class, and
background 1; see `_swap`.

Shapes: N images, R anchors per image, Ri anchors of a level.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import cat
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from focal_det.host import put_scalar
from focal_det.losses import ClsLoss
from focal_det.losses.normalizers import Normalizer

from .assigners import IoUAssigner, gather_boxes
from .box_loss import check_box_loss_type
from .build import build_stage, check_finite
from .ground_truth import report_boxes_without_anchor
from .stage_losses import StageLosses
from .stage_outputs import Record, StageOutputs, replaced

_OBJECT = 0


@PROPOSAL_GENERATOR_REGISTRY.register()
class FocalRPN(RPN):
    """RPN of arXiv 1506.01497 from Detectron2's parts, with a choice of losses.

    With the defaults of a config it behaves like Detectron2's RPN, except that a box that overlaps
    no anchor is assigned none (Detectron2 assigns it all of them; see `IoUAssigner`). Parameter
    names, config keys and checkpoints are the same.

    Args:
        cls_loss: the objectness loss, with one class and one logit per anchor.
        normalizer: supplies the divisor of both losses.
        sampling: "random" for Detectron2's sample of `batch_size_per_image` anchors, up to
            `positive_fraction` of them positive; "none" for all anchors; "hard" for the anchors
            with the largest losses.
        prior_prob: probability of an object at the start, in (0, 1); 0.5 as in Detectron2.
        telemetry_period: see `StageLosses`.
        rpn_args: the other arguments of Detectron2's RPN.

    Raises:
        ValueError: settings that do not fit together, see `check_stage`; an unknown box loss; a
            head without the layer `objectness_logits`.
    """

    # The keys below MODEL.FOCAL_DET that it reads, see `parts.get_keys_read`.
    focal_det_keys = ("RPN",)

    @configurable  # type: ignore[untyped-decorator]  # Detectron2 has no annotations
    def __init__(
        self,
        *,
        cls_loss: ClsLoss,
        normalizer: Normalizer,
        sampling: str = "random",
        prior_prob: float = 0.5,
        telemetry_period: int = 0,
        **rpn_args: Any,
    ) -> None:
        super().__init__(**rpn_args)
        check_box_loss_type(self.box_reg_loss_type, "MODEL.RPN.BBOX_REG_LOSS_TYPE")
        self.assigner = IoUAssigner(matcher=self.anchor_matcher, num_classes=1)
        self.stage_losses = StageLosses(
            cls_loss=cls_loss,
            normalizer=normalizer,
            num_classes=1,
            num_logits=1,
            sampling=sampling,
            batch_size_per_image=self.batch_size_per_image,
            prior_prob=prior_prob,
            box_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
            cls_name="loss_rpn_cls",
            prefix="focal_det/rpn",
            telemetry_period=telemetry_period,
        )
        if not hasattr(self.rpn_head, "objectness_logits"):
            raise ValueError(
                f"MODEL.RPN.HEAD_NAME {type(self.rpn_head).__name__} has no layer "
                "objectness_logits, whose bias sets the prior probability"
            )
        with torch.no_grad():
            bias = self.rpn_head.objectness_logits.bias
            bias.copy_(self.stage_losses.prior_bias.expand_as(bias))

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, Any]) -> dict[str, Any]:
        check_finite(cfg)
        stage = build_stage(cfg, "RPN")
        return {**super().from_config(cfg, input_shape), **stage}

    @contextmanager
    def measured(self, record: Record) -> Iterator[None]:
        """Within the block, label all anchors, pass the outputs to `record`, return losses of 0."""
        # Training mode for this module alone: its submodules keep their modes.
        with self.stage_losses.recorded(record), replaced(self, training=True):
            yield

    def get_prediction_head(self) -> nn.Module:
        """The module whose outputs are logits and deltas."""
        head: nn.Module = self.rpn_head
        return head

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: list[Boxes], gt_instances: list[Instances]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Label the anchors of each image; if `sampling` is "random", also draw the sample.

        Args:
            anchors: per level.
            gt_instances: per image.

        Returns:
            As Detectron2's: per image, labels (R,) in {-1 ignore, 0 background, 1 object} and
            matched boxes (R, 4).
        """
        all_anchors = Boxes.cat(anchors)
        gt_labels = []
        gt_boxes = []
        without_anchor = []
        for instances in gt_instances:
            objects = Instances(instances.image_size, gt_boxes=instances.gt_boxes)
            objects.gt_classes = torch.full_like(instances.gt_classes, _OBJECT)
            assignment = self.assigner.assign(anchors, objects)
            labels = _swap(assignment.gt_labels)
            if self.anchor_boundary_thresh >= 0:
                is_inside = all_anchors.inside_box(
                    instances.image_size, self.anchor_boundary_thresh
                )
                labels[~is_inside] = -1
            if self.stage_losses.draws_sample:
                labels = self._subsample_labels(labels)
            gt_labels.append(labels)
            gt_boxes.append(gather_boxes(objects.gt_boxes.tensor, assignment.matched_idxs))
            without_anchor.append(assignment.without_anchor)
        names = [f"{i} of the batch" for i in range(len(gt_instances))]
        # One copy from the device for all images.
        masks = torch.cat(without_anchor).cpu().split([len(x) for x in without_anchor])
        report_boxes_without_anchor(names, [x.gt_boxes.tensor for x in gt_instances], masks)
        return gt_labels, gt_boxes

    def losses(
        self,
        anchors: list[Boxes],
        pred_objectness_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Normalized and weighted losses.

        Args:
            anchors: per level.
            pred_objectness_logits: per level (N, Ri).
            gt_labels, gt_boxes: per image, see `label_and_sample_anchors`.
            pred_anchor_deltas: per level (N, Ri, 4).

        Returns:
            {"loss_rpn_cls": (), "loss_rpn_loc": ()}.
        """
        labels = torch.stack(gt_labels)
        # One wait for the device.
        num_pos, num_neg = torch.stack([(labels == 1).sum(), (labels == 0).sum()]).tolist()
        put_scalar("rpn/num_pos_anchors", num_pos / len(labels))
        put_scalar("rpn/num_neg_anchors", num_neg / len(labels))
        bias = self.rpn_head.objectness_logits.bias
        outputs = StageOutputs(
            pred_logits=[x[..., None] for x in pred_objectness_logits],
            pred_deltas=cat(pred_anchor_deltas, dim=1),
            anchors=Boxes.cat(anchors).tensor,
            gt_labels=_swap(labels),
            gt_boxes=torch.stack(gt_boxes),
            num_classes=1,
            box2box_transform=self.box2box_transform,
            level_names=self.in_features,
        )
        loss_cls, loss_loc = self.stage_losses(outputs, bias=bias)
        losses = {"loss_rpn_cls": loss_cls, "loss_rpn_loc": loss_loc}
        return {k: v * self.loss_weight.get(k, 1.0) for k, v in losses.items()}


def _swap(labels: Tensor) -> Tensor:
    """From Detectron2's labels to ours or back: objects are 1 there and 0 here."""
    return torch.where(labels < 0, labels, 1 - labels)
