"""The losses of one stage of a two-stage detector: of an RPN, or of a box head.

Shapes: N images, A anchors per cell, R anchors or proposals per image, Ri of a level, K classes (1
for an RPN), C logits per anchor or proposal (see `ClsLoss`).
"""

from collections.abc import Sequence
from typing import Optional, Union, cast

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from torch import Tensor, nn

from focal_det.losses import ClsLoss
from focal_det.losses.base import PointwiseClsLoss, split_levels
from focal_det.losses.normalizers import Normalizer
from focal_det.losses.ohem import mine_hard_anchors
from focal_det.losses.targets import DenseTargets
from focal_det.messages import describe_unknown

from .box_loss import box_loss_of_positives
from .dense_losses import build_targets, compute_dense_losses
from .first_step import compute_loss_at_prior, report_first_loss
from .telemetry import is_telemetry_due, put_telemetry

# A sample with at most POSITIVE_FRACTION positives; all anchors or proposals; or those with the
# largest losses.
SAMPLINGS = ("random", "none", "hard")
# From arXiv 1604.03540, section 4: a proposal is dropped if a harder one overlaps it by more.
_HARD_NMS_THRESH = 0.7

Prior = Union[float, Sequence[float]]


def check_stage(
    *,
    cls_loss: ClsLoss,
    normalizer: Normalizer,
    sampling: str,
    prior_prob: Prior,
    batch_size_per_image: int,
    num_classes: int,
) -> None:
    """Refuse settings of a stage that do not fit together; see `StageLosses` for the arguments.

    Raises:
        ValueError: an unknown sampling, a prior out of range, or a combination that cannot work.
    """
    if sampling not in SAMPLINGS:
        raise ValueError(describe_unknown("SAMPLING", sampling, SAMPLINGS))
    name = type(normalizer).__name__
    if normalizer.of_samples and sampling == "none":
        raise ValueError(
            f"NORMALIZER {name} divides by the size of a sample, but SAMPLING is none: the loss of "
            "all anchors would be divided by a number unrelated to the objects. Set "
            "NORMALIZER.NAME to one that counts positives, such as EMAPosCount"
        )
    if sampling == "hard" and not cls_loss.pointwise:
        raise ValueError(
            f"SAMPLING hard ranks anchors by their individual losses, but "
            f"{type(cls_loss).__name__} gives one loss for all of them"
        )
    if batch_size_per_image < 1:
        raise ValueError(f"batch_size_per_image must be at least 1, got {batch_size_per_image}")
    make_bias(cls_loss, prior_prob, num_classes)


def make_bias(cls_loss: ClsLoss, prior_prob: Prior, num_classes: int) -> Tensor:
    """(C,) initial bias of the scores; zeros if `prior_prob` is 0, as in Detectron2.

    Raises:
        ValueError: a prior out of range, or 0 for a loss of sigmoids.
    """
    num_outputs = cls_loss.num_outputs(num_classes)
    if prior_prob != 0:
        return cls_loss.bias(prior_prob, num_classes)
    # At logits of 0, a softmax spreads a probability of 1 over all outputs; K sigmoids are 0.5
    # each, a loss of K log(2) per anchor.
    if num_outputs == num_classes:
        raise ValueError(
            f"PRIOR_PROB 0 starts all {num_classes} scores of {type(cls_loss).__name__} at 0.5; "
            "set it to a small initial probability, such as 0.01"
        )
    return torch.zeros(num_outputs)


class StageLosses(nn.Module):
    """Classification and box loss of a stage, its telemetry, and the report of its first step.

    Args:
        cls_loss: sums the classification loss per image.
        normalizer: supplies the divisor of both losses.
        num_classes: K.
        sampling: one of SAMPLINGS. "hard" keeps the anchors or proposals with the largest sums of
            both losses, after NMS at 0.7: OHEM of arXiv 1604.03540. "random" and "none" change
            nothing here, as the caller has drawn the sample.
        batch_size_per_image: how many "hard" keeps.
        prior_prob: foreground probability at the start, one for all classes or one for each; 0 for
            Detectron2's bias of 0.
        cls_name: name of the classification loss in the metrics.
        prefix: of the names of other metrics.
        level_names: names of the feature maps.
        dataset_names: the first with class names gives the names of the classes.
        telemetry_period: iterations between statistics in the metrics; 0 for none.

    Raises:
        ValueError: see `check_stage`.
    """

    prior_bias: Tensor

    def __init__(
        self,
        *,
        cls_loss: ClsLoss,
        normalizer: Normalizer,
        num_classes: int,
        sampling: str,
        batch_size_per_image: int,
        prior_prob: Prior,
        cls_name: str,
        prefix: str,
        level_names: Sequence[str],
        dataset_names: Sequence[str] = (),
        telemetry_period: int = 0,
    ) -> None:
        super().__init__()
        check_stage(
            cls_loss=cls_loss,
            normalizer=normalizer,
            sampling=sampling,
            prior_prob=prior_prob,
            batch_size_per_image=batch_size_per_image,
            num_classes=num_classes,
        )
        self.cls_loss = cls_loss
        self.normalizer = normalizer
        self.num_classes = num_classes
        self.num_outputs = cls_loss.num_outputs(num_classes)
        self.sampling = sampling
        self.batch_size_per_image = batch_size_per_image
        bias = make_bias(cls_loss, prior_prob, num_classes)
        # Not saved, so that checkpoints keep Detectron2's names.
        self.register_buffer("prior_bias", bias, persistent=False)
        self._cls_name = cls_name
        self._prefix = prefix
        self._level_names = level_names
        self._dataset_names = dataset_names
        self._telemetry_period = telemetry_period
        self._is_first_step = True

    def forward(
        self,
        pred_logits: Sequence[Tensor],
        pred_deltas: Tensor,
        anchors: Tensor,
        gt_labels: Tensor,
        gt_boxes: Tensor,
        *,
        bias: Tensor,
        box2box_transform: Box2BoxTransform,
        box_loss_type: str,
        smooth_l1_beta: float,
    ) -> tuple[Tensor, Tensor]:
        """Normalized losses of a batch.

        Args:
            pred_logits: per level (N, Ri, C).
            pred_deltas: (N, R, 4).
            anchors: (R, 4), or (N, R, 4) for proposals, XYXY in absolute pixels.
            gt_labels: (N, R) int64 in {-1, 0..K}: -1 is ignored, K is background.
            gt_boxes: (N, R, 4) matched boxes.
            bias: (A * C,) of the layer that predicts the logits.
            box2box_transform: decodes deltas.
            box_loss_type, smooth_l1_beta: see `box_loss_of_positives`.

        Returns:
            () classification loss and () box loss.
        """
        box_args = {"box2box_transform": box2box_transform, "smooth_l1_beta": smooth_l1_beta}
        targets = self._build_targets(gt_labels, gt_boxes, anchors, pred_deltas, box2box_transform)
        if self.sampling == "hard":
            box_losses = box_loss_of_positives(
                pred_deltas.detach(), anchors, targets, loss_type=box_loss_type, **box_args
            )
            gt_labels = self._keep_hardest(pred_logits, box_losses, anchors, targets)
            targets = self._build_targets(
                gt_labels, gt_boxes, anchors, pred_deltas, box2box_transform
            )
        divisor = self.normalizer.compute_divisor(targets)
        # Before the loss, which updates its state.
        self._put_figures(pred_logits, targets, divisor)
        initial_loss = self._compute_initial_loss(pred_logits, targets, divisor, bias)
        loss_cls, loss_box = compute_dense_losses(
            pred_logits,
            pred_deltas,
            anchors,
            targets,
            divisor,
            cls_loss=self.cls_loss,
            box_loss_type=box_loss_type,
            **box_args,
        )
        if initial_loss is not None and targets.pos_idxs[0].numel():
            report_first_loss(self._cls_name, loss_cls.item(), initial_loss.item())
        self._is_first_step = False
        return loss_cls, loss_box

    def _build_targets(
        self,
        gt_labels: Tensor,
        gt_boxes: Tensor,
        anchors: Tensor,
        pred_deltas: Tensor,
        box2box_transform: Box2BoxTransform,
    ) -> DenseTargets:
        return build_targets(
            gt_labels,
            gt_boxes,
            self.num_classes,
            anchors=anchors,
            pred_anchor_deltas=pred_deltas,
            box2box_transform=box2box_transform,
            needs=self.cls_loss.needs,
        )

    @torch.no_grad()
    def _keep_hardest(
        self,
        pred_logits: Sequence[Tensor],
        box_losses: Tensor,
        anchors: Tensor,
        targets: DenseTargets,
    ) -> Tensor:
        """(N, R) labels that ignore all but the hardest of each image.

        Args:
            box_losses: (P,) of the positives.
        """
        cls_loss = cast(PointwiseClsLoss, self.cls_loss)
        levels = split_levels(pred_logits, targets)
        losses = torch.cat([cls_loss.per_anchor(*level) for level in levels], dim=1).float()
        losses[targets.pos_idxs] += box_losses
        kept = torch.full_like(targets.gt_labels, -1)
        all_anchors = anchors.expand(*targets.gt_labels.shape, 4)
        for labels, losses_of_image, boxes, out in zip(
            targets.gt_labels, losses, all_anchors, kept
        ):
            idxs = mine_hard_anchors(
                losses_of_image,
                labels,
                boxes,
                num_classes=self.num_classes,
                batch=self.batch_size_per_image,
                nms_thresh=_HARD_NMS_THRESH,
                neg_per_pos=0,
            )
            out[idxs] = labels[idxs]
        return kept

    def _compute_initial_loss(
        self, pred_logits: Sequence[Tensor], targets: DenseTargets, divisor: Tensor, bias: Tensor
    ) -> Optional[Tensor]:
        if not self._is_first_step:
            return None
        level_sizes = [x.shape[1] for x in pred_logits]
        return compute_loss_at_prior(
            bias, self.prior_bias, self.cls_loss, targets, divisor, level_sizes
        )

    def _put_figures(
        self, pred_logits: Sequence[Tensor], targets: DenseTargets, divisor: Tensor
    ) -> None:
        # There may be no proposals at all.
        if not is_telemetry_due(self._telemetry_period) or targets.gt_labels.numel() == 0:
            return
        put_telemetry(
            self.cls_loss,
            pred_logits,
            targets,
            divisor=divisor,
            prior_bias=self.prior_bias,
            dataset_names=self._dataset_names,
            level_names=self._level_names,
            prefix=self._prefix,
        )
