"""Metrics of a dense classification loss during training.

They show which anchors carry the loss, how confident the model is, and where the positives are.

Shapes: N images, R anchors per image, Ri anchors of a level, K classes, C logits per anchor, L
levels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Optional, cast

import torch
from detectron2.data import MetadataCatalog
from detectron2.utils.events import get_event_storage
from torch import Tensor

from focal_det.host import has_event_storage
from focal_det.losses import ClsLoss, PointwiseClsLoss
from focal_det.losses.base import split_levels
from focal_det.losses.targets import DenseTargets

# With more classes, positives are not counted per class: the metrics would be flooded.
_MAX_CLASSES = 100


def is_telemetry_due(period: int) -> bool:
    """Whether a trainer runs, and its iteration is a multiple of `period`; False for 0."""
    if period <= 0 or not has_event_storage():
        return False
    # Plus one, as Detectron2's writers count: they write after iterations 19, 39, ...
    return bool((get_event_storage().iter + 1) % period == 0)


def is_picture_due(period: int) -> bool:
    """Whether a trainer is running and VIS_PERIOD asks for a picture of this step; never for 0."""
    if period <= 0 or not has_event_storage():
        return False
    # Without plus one: Detectron2's RetinaNet draws at iterations 0, period, ...
    return bool(get_event_storage().iter % period == 0)


def put_telemetry(
    cls_loss: ClsLoss,
    logits: Sequence[Tensor],
    targets: DenseTargets,
    *,
    divisor: Tensor,
    prior_bias: Optional[Tensor],
    dataset_names: Sequence[str],
    level_names: Sequence[str],
    prefix: str = "focal_det",
) -> None:
    """Put the figures of `compute_telemetry` into the trainer's metrics.

    Args:
        dataset_names: the first data set with class names gives the names of the classes.
        prefix: what the names of the metrics start with.
    """
    values = compute_telemetry(
        cls_loss,
        logits,
        targets,
        divisor=divisor,
        prior_bias=prior_bias,
        class_names=_get_class_names(dataset_names, targets.num_classes),
        level_names=level_names,
    )
    for name, value in values.items():
        get_event_storage().put_scalar(f"{prefix}/{name}", value, smoothing_hint=False)


def _get_class_names(dataset_names: Sequence[str], num_classes: int) -> list[str]:
    """Class names of the first data set that has any; else the class ids."""
    for name in dataset_names:
        if name in MetadataCatalog.list():
            class_names = MetadataCatalog.get(name).get("thing_classes")
            if class_names:
                return [str(x) for x in class_names]
    return [str(x) for x in range(num_classes)]


@torch.no_grad()
def compute_telemetry(
    cls_loss: ClsLoss,
    logits: Sequence[Tensor],
    targets: DenseTargets,
    *,
    divisor: Tensor,
    prior_bias: Optional[Tensor],
    class_names: Sequence[str],
    level_names: Sequence[str],
) -> dict[str, float]:
    """Metrics of one training batch by name; synchronizes with the device.

    Args:
        logits: per level (N, Ri, C).
        divisor: what the normalizer divides by, () or (N,).
        prior_bias: (C,) initial bias of `cls_score`; None if it is not known.
        class_names, level_names: K and L names.

    Returns:
        "share_of_positives", "share_of_hardest_negatives" (the hardest 1 %): shares of the loss in
        [0, 1]; only for losses of single anchors (`pointwise`). "max_abs_logit". "mean_p_t": mean
        score of the positives for their own class; left out if there are none. "prior_distance":
        log-odds of the mean score (of anchors that are not ignored) minus the log-odds of the
        prior; close to 0 for a new head. "normalizer": mean divisor. "num_pos/<level>" and
        "num_pos/<class>": positives of the batch.
    """
    totals = _Totals.start(logits[0].device)
    values: dict[str, float] = {"normalizer": float(divisor.float().mean())}
    for name, (x, labels, iou) in zip(level_names, split_levels(logits, targets)):
        is_pos = (labels >= 0) & (labels < targets.num_classes)
        values[f"num_pos/{name}"] = int(is_pos.sum())
        # Image by image, so that temporary tensors are small beside what the step keeps.
        for i in range(len(x)):
            image_iou = None if iou is None else iou[i : i + 1]
            totals.add(cls_loss, x[i : i + 1], labels[i : i + 1], image_iou, is_pos[i])
    values.update(totals.summarize(cls_loss, targets, prior_bias))
    if targets.num_classes <= _MAX_CLASSES:
        values.update(_count_per_class(targets, class_names))
    return values


def _count_per_class(targets: DenseTargets, class_names: Sequence[str]) -> dict[str, float]:
    """Positives of each class."""
    own_classes = targets.gt_labels[targets.pos_idxs]
    counts = torch.bincount(own_classes, minlength=targets.num_classes).tolist()
    # There may be fewer names than classes if the metadata is wrong; zip drops the rest.
    return {f"num_pos/{name}": count for name, count in zip(class_names, counts)}


@dataclass
class _Totals:
    """What has been summed or collected over the levels and images so far.

    Attributes:
        score_sum: () float64, over the anchors that are not ignored, and all classes.
        pos_loss_sum: () float32, over positives; pointwise losses only.
        neg_losses: float32 losses of negatives; pointwise losses only.
        own_scores: scores of the positives' own classes.
        max_abs_logits: () each.
    """

    score_sum: Tensor
    pos_loss_sum: Tensor
    neg_losses: list[Tensor] = field(default_factory=list)
    own_scores: list[Tensor] = field(default_factory=list)
    max_abs_logits: list[Tensor] = field(default_factory=list)

    @classmethod
    def start(cls, device: torch.device) -> "_Totals":
        zero = torch.zeros((), device=device)
        return cls(score_sum=zero.double(), pos_loss_sum=zero)

    def add(
        self,
        cls_loss: ClsLoss,
        logits: Tensor,
        labels: Tensor,
        iou: Optional[Tensor],
        is_pos: Tensor,
    ) -> None:
        """Add one level of one image.

        Args:
            logits: (1, Ri, C).
            labels, iou: (1, Ri).
            is_pos: (Ri,) bool.
        """
        image_labels = labels[0]
        scores = cls_loss.scores(logits[0])
        # In float64, as float32 would lose digits over millions of small scores.
        sums = scores.sum(dim=1, dtype=torch.float64)
        self.score_sum = self.score_sum + sums.masked_fill(image_labels < 0, 0.0).sum()
        own_classes = image_labels[is_pos][:, None]
        self.own_scores.append(scores[is_pos].gather(1, own_classes).flatten())
        self.max_abs_logits.append(logits[0].abs().amax())
        if cls_loss.pointwise:
            losses = cast(PointwiseClsLoss, cls_loss).per_anchor(logits, labels, iou)[0].float()
            self.pos_loss_sum = self.pos_loss_sum + losses[is_pos].sum()
            is_neg = (image_labels >= 0) & ~is_pos
            self.neg_losses.append(losses[is_neg])

    def summarize(
        self, cls_loss: ClsLoss, targets: DenseTargets, prior_bias: Optional[Tensor]
    ) -> dict[str, float]:
        """The figures other than counts; see `compute_telemetry`."""
        values = {"max_abs_logit": float(torch.stack(self.max_abs_logits).amax())}
        if cls_loss.pointwise:
            values.update(_compute_shares(self.pos_loss_sum, torch.cat(self.neg_losses)))
        if targets.pos_idxs[0].numel():
            values["mean_p_t"] = float(torch.cat(self.own_scores).float().mean())
        if prior_bias is not None:
            num_scores = int(targets.num_samples.sum()) * targets.num_classes
            mean_score = float(self.score_sum) / max(num_scores, 1)
            mean_prior = float(cls_loss.scores(prior_bias[None]).double().mean())
            values["prior_distance"] = _logit(mean_score) - _logit(mean_prior)
        return values


def _compute_shares(pos_loss_sum: Tensor, neg_losses: Tensor) -> dict[str, float]:
    """Shares of the positives and of the hardest 1 % of the negatives in the loss."""
    total = pos_loss_sum + neg_losses.sum()
    # Rounded up: of fewer than 100 negatives, one is the hardest. topk of 0 elements sums to 0.
    num_hardest = math.ceil(len(neg_losses) / 100)
    hardest = neg_losses.topk(num_hardest).values.sum()
    shares = torch.stack([pos_loss_sum, hardest]) / total.clamp(min=1e-30)
    return dict(zip(("share_of_positives", "share_of_hardest_negatives"), shares.tolist()))


def _logit(probability: float) -> float:
    """Log-odds of a probability, finite also where it has been rounded to 0 or 1."""
    probability = min(max(probability, 1e-30), 1 - 1e-12)
    return math.log(probability / (1 - probability))
