"""The classification loss of a run's first step, from its labels alone.

No image is opened and no model is run.

Shapes: R anchors of an image, K classes of a stage.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

import numpy as np
import torch
from detectron2.modeling.sampling import subsample_labels
from detectron2.structures import Boxes
from torch import Tensor

from focal_det.losses.initial import compute_initial_loss
from focal_det.losses.targets import DenseTargets
from focal_det.modeling.assigners import gather_boxes
from focal_det.modeling.dense_losses import normalize_cls_sums
from focal_det.modeling.settings import LossSettings, StageSettings

from .anchors import AnchorSetup, label_record


@dataclass(frozen=True)
class FirstLoss:
    """Classification loss of the first step, with every score at the prior.

    Attributes:
        loss: as the metrics have it, in nats.
        of_background: the part of it that negatives have; NaN if the loss has no such part.
    """

    loss: float
    of_background: float

    @property
    def background_share(self) -> float:
        """In [0, 1], or NaN."""
        if self.loss == 0:
            return float("nan")
        return self.of_background / self.loss


class _ImageSums(NamedTuple):
    """Of one image, (1,) each: sum of the loss, that of negatives, what the normalizer counts."""

    loss: Tensor
    of_background: Tensor
    counted: Tensor


@torch.no_grad()
def compute_first_loss(
    stage: StageSettings, records: Sequence[dict[str, Any]], setup: AnchorSetup
) -> Optional[FirstLoss]:
    """The loss of the stage that classifies anchors, in the first step, with one process.

    Args:
        records: a batch of Detectron2's dataset dicts; images may repeat.

    Returns:
        None if the loss is not known, takes the value of the box loss, or is that of the hardest
        anchors, which only a model can tell.
    """
    if stage.loss is None or stage.loss.cls_loss.scaled_to_box_loss or stage.sampling == "hard":
        return None
    # Each image once, as labelling takes the time: a batch repeats the images of a small set.
    sums_by_image: dict[int, _ImageSums] = {}
    # The same sample each time, and the caller's random numbers are left alone.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for record in records:
            if id(record) not in sums_by_image:
                sums_by_image[id(record)] = _compute_sums(record, setup, stage, stage.loss)
    batch = [sums_by_image[id(record)] for record in records]
    divisor = stage.loss.normalizer(torch.cat([x.counted for x in batch]))
    loss, of_background = (
        stage.loss.weight * float(normalize_cls_sums(stage.loss.cls_loss, torch.cat(sums), divisor))
        for sums in ([x.loss for x in batch], [x.of_background for x in batch])
    )
    return FirstLoss(loss, of_background)


def _compute_sums(
    record: dict[str, Any], setup: AnchorSetup, stage: StageSettings, loss: LossSettings
) -> _ImageSums:
    labelled = label_record(record, setup)
    level_sizes = [len(x) for x in labelled.anchors]
    anchors = Boxes.cat(labelled.anchors).tensor
    labels = labelled.labels
    if stage.num_classes < setup.num_classes:
        # An RPN is blind to classes.
        labels = torch.where(labels < 0, labels, (labels == setup.num_classes).long())
    if stage.sampling == "random":
        labels = _sample(labels, stage)
    boxes = gather_boxes(labelled.objects.gt_boxes.tensor, labelled.matched_idxs)
    targets = _build_targets(labels[None], boxes[None], anchors, stage.num_classes, loss)
    sums = compute_initial_loss(loss.cls_loss, loss.bias, targets, level_sizes)
    of_background = torch.full_like(sums, torch.nan)
    if loss.cls_loss.pointwise:
        negatives = labels.masked_fill(labels < stage.num_classes, -1)
        others = _build_targets(negatives[None], boxes[None], anchors, stage.num_classes, loss)
        of_background = compute_initial_loss(loss.cls_loss, loss.bias, others, level_sizes)
    return _ImageSums(sums, of_background, loss.normalizer.count(targets))


def _sample(labels: Tensor, stage: StageSettings) -> Tensor:
    """(R,) labels that ignore all but a random sample."""
    kept = subsample_labels(labels, stage.sample_size, stage.positive_fraction, stage.num_classes)
    idxs = torch.cat(kept)
    return torch.full_like(labels, -1).index_copy(0, idxs, labels[idxs])


def _build_targets(
    labels: Tensor, gt_boxes: Tensor, anchors: Tensor, num_classes: int, loss: LossSettings
) -> DenseTargets:
    return DenseTargets.build(
        labels,
        gt_boxes,
        num_classes,
        needs=loss.cls_loss.needs,
        anchors=anchors,
        # The IoU of predicted boxes takes a model, and none is run.
        compute_iou=lambda targets: torch.zeros(targets.gt_labels.shape),
    )


@torch.no_grad()
def compute_loss_per_box(stage: StageSettings) -> Optional[np.ndarray]:
    """Loss of a single proposal of each label, 0 to K, with its scores at the prior.

    Returns:
        (K + 1,) in nats, the last for background; None if the loss is not known, if it depends on
        other proposals or on predicted boxes, or if its divisor is not the number of proposals: the
        loss of a step is then not the mean of theirs.
    """
    loss = stage.loss
    if loss is None or not loss.normalizer.of_samples:
        return None
    cls_loss = loss.cls_loss
    if not cls_loss.pointwise or cls_loss.scaled_to_box_loss or "iou" in cls_loss.needs:
        return None
    # Each label in an image of its own.
    labels = torch.arange(stage.num_classes + 1)[:, None]
    boxes = torch.zeros(len(labels), 1, 4)
    targets = _build_targets(labels, boxes, boxes[0], stage.num_classes, loss)
    losses = compute_initial_loss(loss.cls_loss, loss.bias, targets, [1])
    return loss.weight * losses.double().numpy()
