"""The last layers of a box head, with a choice of losses.

Shapes: N images, R proposals of all images, K classes, C = `cls_loss.num_outputs(K)` logits.
"""

import logging
from collections.abc import Sequence
from typing import Any, Union

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec, cat
from detectron2.modeling.roi_heads.fast_rcnn import (
    FastRCNNOutputLayers,
    _log_classification_stats,
)
from detectron2.structures import Instances
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from focal_det.host import LOGGER_NAME
from focal_det.losses import ClsLoss
from focal_det.losses.normalizers import Normalizer

from .box_loss import check_box_loss_type
from .build import build_stage
from .stage_losses import StageLosses
from .stage_outputs import StageOutputs


class FocalFastRCNNOutputLayers(FastRCNNOutputLayers):
    """Detectron2's layers for the scores and boxes of proposals, with a choice of losses.

    With the defaults of a config they behave like Detectron2's. Parameters have the same names and
    shapes for every loss, so that checkpoints load both ways: `cls_score` keeps its K + 1 rows, and
    a loss of K sigmoids leaves the last one, of background, at 0.

    Args:
        input_shape: shape of a proposal's features.
        cls_loss: sums the classification loss per image and turns logits into scores.
        normalizer: supplies the divisor of both losses.
        sampling, batch_size_per_image, prior_prob, dataset_names, telemetry_period: see
            `StageLosses`.
        layer_args: the other arguments of Detectron2's FastRCNNOutputLayers.

    Raises:
        ValueError: settings that do not fit together, see `check_stage`; an unknown box loss;
            Detectron2's own sigmoid or federated loss is on.
    """

    @configurable  # type: ignore[untyped-decorator]  # Detectron2 has no annotations
    def __init__(
        self,
        input_shape: Union[ShapeSpec, int],
        *,
        cls_loss: ClsLoss,
        normalizer: Normalizer,
        sampling: str = "random",
        batch_size_per_image: int = 512,
        prior_prob: Union[float, Sequence[float]] = 0.0,
        dataset_names: Sequence[str] = (),
        telemetry_period: int = 0,
        **layer_args: Any,
    ) -> None:
        super().__init__(input_shape, **layer_args)
        self._refuse_other_losses()
        check_box_loss_type(self.box_reg_loss_type, "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE")
        self.stage_losses = StageLosses(
            cls_loss=cls_loss,
            normalizer=normalizer,
            num_classes=self.num_classes,
            num_logits=self.num_classes + 1,
            sampling=sampling,
            batch_size_per_image=batch_size_per_image,
            prior_prob=prior_prob,
            box_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
            cls_name="loss_cls",
            prefix="focal_det/roi_head",
            dataset_names=dataset_names,
            telemetry_period=telemetry_period,
        )
        with torch.no_grad():
            self.cls_score.bias[: self.stage_losses.num_outputs] = self.stage_losses.prior_bias
        self._clear_unused_rows()
        self.register_load_state_dict_post_hook(_leave_out_background)

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: ShapeSpec) -> dict[str, Any]:
        return {
            **build_stage(cfg, "ROI_BOX_HEAD"),
            **super().from_config(cfg, input_shape),
            "dataset_names": (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST),
        }

    @torch.no_grad()
    def take_weights(self, layers: FastRCNNOutputLayers) -> None:
        """Copy the weights of `layers`, except the bias of `cls_score`, which keeps its prior."""
        self.cls_score.weight.copy_(layers.cls_score.weight)
        self.bbox_pred.load_state_dict(layers.bbox_pred.state_dict())
        self._clear_unused_rows()

    def _refuse_other_losses(self) -> None:
        # Only Detectron2's main branch has these options.
        for name in ("use_sigmoid_ce", "use_fed_loss"):
            if getattr(self, name, False):
                raise ValueError(
                    f"MODEL.ROI_BOX_HEAD.{name.upper()} turns on Detectron2's own loss: set it to "
                    "False, and choose the loss with MODEL.FOCAL_DET.ROI_BOX_HEAD.CLS_LOSS.NAME"
                )

    def get_prediction_head(self) -> nn.Module:
        """The module whose outputs are logits and deltas: these layers."""
        return self

    @torch.no_grad()
    def _clear_unused_rows(self) -> bool:
        """Zero the rows of `cls_score` that the loss does not use; return whether any was not 0."""
        num_outputs = self.stage_losses.num_outputs
        unused = (self.cls_score.weight[num_outputs:], self.cls_score.bias[num_outputs:])
        was_used = any(bool(x.any()) for x in unused)
        for rows in unused:
            rows.zero_()
        return was_used

    def losses(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> dict[str, Tensor]:
        """Normalized and weighted losses.

        Args:
            predictions: outputs of `forward`: scores (R, K + 1), and deltas (R, K * 4) or (R, 4).
            proposals: per image, with `proposal_boxes`, `gt_classes` and, where the image has
                objects, `gt_boxes`.

        Returns:
            {"loss_cls": (), "loss_box_reg": ()}.
        """
        scores, deltas = predictions
        num_outputs = self.stage_losses.num_outputs
        logits = scores[:, :num_outputs]
        gt_labels = cat([x.gt_classes for x in proposals])
        _log_classification_stats(self._add_background(logits.detach()), gt_labels)
        outputs = self._collect_outputs(logits, deltas, gt_labels, proposals)
        bias = self.cls_score.bias[:num_outputs]
        loss_cls, loss_box_reg = self.stage_losses(outputs, bias=bias)
        losses = {"loss_cls": loss_cls, "loss_box_reg": loss_box_reg}
        return {k: v * self.loss_weight.get(k, 1.0) for k, v in losses.items()}

    def _collect_outputs(
        self, logits: Tensor, deltas: Tensor, gt_labels: Tensor, proposals: list[Instances]
    ) -> StageOutputs:
        """Regroup the (R, C) logits, deltas and (R,) labels of all images by image."""
        boxes = cat([x.proposal_boxes.tensor for x in proposals])
        # An image without objects has no `gt_boxes`; any box will do.
        gt_boxes = cat(
            [(x.gt_boxes if x.has("gt_boxes") else x.proposal_boxes).tensor for x in proposals]
        )
        counts = [len(x) for x in proposals]
        return StageOutputs(
            pred_logits=[_to_images(logits, counts)],
            pred_deltas=_to_images(self._select_deltas(deltas, gt_labels), counts),
            anchors=_to_images(boxes, counts),
            gt_labels=_to_images(gt_labels, counts, padding=-1),
            gt_boxes=_to_images(gt_boxes, counts),
            num_classes=self.num_classes,
            box2box_transform=self.box2box_transform,
            # Proposals of all feature maps are one level.
            level_names=("proposals",),
        )

    def _add_background(self, logits: Tensor) -> Tensor:
        """(R, K + 1) logits; sigmoids get 0 for background, the largest if all scores are < 0.5."""
        return F.pad(logits, (0, self.num_classes + 1 - logits.shape[1]))

    def _select_deltas(self, deltas: Tensor, gt_labels: Tensor) -> Tensor:
        """(R, 4) deltas for the class of each proposal, or for an arbitrary class if background."""
        if deltas.shape[1] == 4:
            return deltas
        class_idxs = gt_labels.clamp(0, self.num_classes - 1)
        per_class = deltas.view(-1, self.num_classes, 4)
        return per_class.gather(1, class_idxs[:, None, None].expand(-1, 1, 4)).squeeze(1)

    def predict_probs(
        self, predictions: tuple[Tensor, Tensor], proposals: list[Instances]
    ) -> Sequence[Tensor]:
        """Per image (Ri, K + 1) scores in [0, 1]; 0 for background, which is never read."""
        scores, _ = predictions
        logits = scores[:, : self.stage_losses.num_outputs]
        probs = F.pad(self.stage_losses.cls_loss.scores(logits), (0, 1))
        per_image: Sequence[Tensor] = probs.split([len(x) for x in proposals])
        return per_image


def _leave_out_background(layers: FocalFastRCNNOutputLayers, _: Any) -> None:
    """After loading: zero the background row if a softmax has trained it, and log that."""
    if layers._clear_unused_rows():
        name = type(layers.stage_losses.cls_loss).__name__
        logging.getLogger(LOGGER_NAME).info(
            f"the loaded cls_score was trained with a softmax over classes and background; {name} "
            "uses the rows of the classes and ignores that of background"
        )


def _to_images(values: Tensor, counts: list[int], padding: int = 0) -> Tensor:
    """Split (R, ...) values by image and pad them to (N, largest count, ...)."""
    per_image = values.split(counts)
    return pad_sequence(per_image, batch_first=True, padding_value=padding)
