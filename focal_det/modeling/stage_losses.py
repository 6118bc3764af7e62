"""The losses of one stage of a two-stage detector: of an RPN, or of a box head.

Shapes: N images, A anchors per cell, R anchors or proposals per image, Ri of a level, K classes (1
for an RPN), C logits per anchor or proposal (see `ClsLoss`).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Optional, Union, cast

import torch
from torch import Tensor, nn

from focal_det.losses import ClsLoss
from focal_det.losses.base import PointwiseClsLoss, split_levels
from focal_det.losses.normalizers import Normalizer
from focal_det.losses.ohem import mine_hard_anchors
from focal_det.losses.targets import DenseTargets
from focal_det.messages import describe_unknown

from .box_loss import box_loss_of_positives
from .dense_losses import compute_dense_losses
from .first_step import compute_loss_at_prior, report_first_loss
from .stage_outputs import Record, StageOutputs, replaced
from .telemetry import is_telemetry_due, put_telemetry

# A sample with at most POSITIVE_FRACTION positives; all anchors or proposals; or those with the
# largest losses.
SAMPLINGS = ("random", "none", "hard")
# From arXiv 1604.03540, section 4: IoU above which NMS keeps only the harder of two proposals.
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
    num_logits: int,
) -> Tensor:
    """Refuse settings of a stage that do not fit together; see `StageLosses` for the arguments.

    Returns:
        (C,) initial bias of the logits, see `make_bias`.

    Raises:
        ValueError: an unknown sampling, a prior out of range, or a combination that cannot work.
    """
    if sampling not in SAMPLINGS:
        raise ValueError(describe_unknown("SAMPLING", sampling, SAMPLINGS))
    num_outputs = cls_loss.num_outputs(num_classes)
    if num_outputs > num_logits:
        raise ValueError(
            f"CLS_LOSS {type(cls_loss).__name__} needs {num_outputs} logits, but the layer has "
            f"only {num_logits} for each anchor or proposal; choose another loss"
        )
    if normalizer.of_samples and sampling == "none":
        raise ValueError(
            f"NORMALIZER {type(normalizer).__name__} divides by the size of a sample, but SAMPLING "
            "is none. Set NORMALIZER.NAME to one that counts positives, such as EMAPosCount"
        )
    if sampling == "hard" and not cls_loss.pointwise:
        raise ValueError(
            f"SAMPLING hard ranks anchors by their individual losses, but "
            f"{type(cls_loss).__name__} gives one loss for all of them"
        )
    if batch_size_per_image < 1:
        key = "BATCH_SIZE_PER_IMAGE of MODEL.RPN or MODEL.ROI_HEADS"
        raise ValueError(f"{key} must be at least 1, got {batch_size_per_image}")
    return make_bias(cls_loss, prior_prob, num_classes)


def make_bias(cls_loss: ClsLoss, prior_prob: Prior, num_classes: int) -> Tensor:
    """(C,) initial bias of the logits; zeros if `prior_prob` is 0, as in Detectron2.

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
        num_logits: how many the layer predicts for each anchor or proposal; at least C.
        sampling: one of SAMPLINGS. "hard" keeps the anchors or proposals with the largest sums of
            both losses, after NMS at 0.7: OHEM of arXiv 1604.03540. "random" and "none" change
            nothing here, as the caller has drawn the sample, if any.
        batch_size_per_image: how many "hard" keeps.
        prior_prob: foreground probability at the start, one for all classes or one for each; 0 for
            Detectron2's bias of 0.
        box_loss_type, smooth_l1_beta: see `box_loss_of_positives`.
        cls_name: name of the classification loss in the metrics.
        prefix: of the names of other metrics.
        dataset_names: the first with class names gives the names of the classes.
        telemetry_period: iterations between statistics in the metrics; 0 for none.

    Raises:
        ValueError: see `check_stage`.
    """

    prior_bias: Tensor
    _is_first_step = True
    # Set by `recorded`.
    _record: Optional[Callable[[StageOutputs], None]] = None

    def __init__(
        self,
        *,
        cls_loss: ClsLoss,
        normalizer: Normalizer,
        num_classes: int,
        num_logits: int,
        sampling: str,
        batch_size_per_image: int,
        prior_prob: Prior,
        box_loss_type: str,
        smooth_l1_beta: float,
        cls_name: str,
        prefix: str,
        dataset_names: Sequence[str] = (),
        telemetry_period: int = 0,
    ) -> None:
        super().__init__()
        bias = check_stage(
            cls_loss=cls_loss,
            normalizer=normalizer,
            sampling=sampling,
            prior_prob=prior_prob,
            batch_size_per_image=batch_size_per_image,
            num_classes=num_classes,
            num_logits=num_logits,
        )
        self.cls_loss = cls_loss
        self.normalizer = normalizer
        self.num_classes = num_classes
        self.sampling = sampling
        self.batch_size_per_image = batch_size_per_image
        self.box_loss_type = box_loss_type
        self.smooth_l1_beta = smooth_l1_beta
        # Not saved, so that checkpoints keep Detectron2's names.
        self.register_buffer("prior_bias", bias, persistent=False)
        self._cls_name = cls_name
        self._prefix = prefix
        self._dataset_names = dataset_names
        self._telemetry_period = telemetry_period

    @property
    def num_outputs(self) -> int:
        """C, logits per anchor or proposal that the loss takes."""
        return len(self.prior_bias)

    @property
    def draws_sample(self) -> bool:
        """Whether the stage is to draw a random sample before it calls `forward`."""
        return self.sampling == "random" and self._record is None

    @contextmanager
    def recorded(self, record: Record, name: str = "") -> Iterator[None]:
        """Within the block, `forward` passes its `outputs` to `record`, and the losses are 0.

        Args:
            name: of the outputs, passed on with them.
        """
        with replaced(self, _record=partial(record, name)):
            yield

    def forward(self, outputs: StageOutputs, *, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Normalized losses of a batch.

        Args:
            outputs: predictions and labels.
            bias: (A * C,) of the layer that predicts the logits.

        Returns:
            () classification loss and () box loss.
        """
        if self._record is not None:
            self._record(outputs)
            zero = outputs.pred_deltas.new_zeros(())
            return zero, zero
        targets = outputs.build_targets(self.cls_loss.needs)
        if self.sampling == "hard":
            kept = self._keep_hardest(outputs, targets)
            targets = replace(outputs, gt_labels=kept).build_targets(self.cls_loss.needs)
        divisor = self.normalizer.compute_divisor(targets)
        # Before the loss is computed, which may change its state.
        self._put_figures(outputs, targets, divisor)
        initial_loss = self._compute_initial_loss(outputs.pred_logits, targets, divisor, bias)
        loss_cls, loss_box = compute_dense_losses(
            outputs.pred_logits,
            outputs.pred_deltas,
            outputs.anchors,
            targets,
            divisor,
            cls_loss=self.cls_loss,
            box2box_transform=outputs.box2box_transform,
            box_loss_type=self.box_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        if initial_loss is not None and targets.pos_idxs[0].numel():
            report_first_loss(self._cls_name, loss_cls.item(), initial_loss.item())
        self._is_first_step = False
        return loss_cls, loss_box

    @torch.no_grad()
    def _keep_hardest(self, outputs: StageOutputs, targets: DenseTargets) -> Tensor:
        """(N, R) labels that ignore all but the hardest of each image."""
        box_losses = box_loss_of_positives(
            outputs.pred_deltas,
            outputs.anchors,
            targets,
            outputs.box2box_transform,
            loss_type=self.box_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        cls_loss = cast(PointwiseClsLoss, self.cls_loss)
        levels = split_levels(outputs.pred_logits, targets)
        losses = torch.cat([cls_loss.per_anchor(*level) for level in levels], dim=1).float()
        losses[targets.pos_idxs] += box_losses
        kept = torch.full_like(targets.gt_labels, -1)
        all_anchors = outputs.anchors.expand(*targets.gt_labels.shape, 4)
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

    def _put_figures(self, outputs: StageOutputs, targets: DenseTargets, divisor: Tensor) -> None:
        # There may be no proposals at all.
        if not is_telemetry_due(self._telemetry_period) or targets.gt_labels.numel() == 0:
            return
        put_telemetry(
            self.cls_loss,
            outputs.pred_logits,
            targets,
            divisor=divisor,
            prior_bias=self.prior_bias,
            dataset_names=self._dataset_names,
            level_names=outputs.level_names,
            prefix=self._prefix,
        )
