"""The classification loss that a training will start with, from its labels alone: no image is opened and no model run."""

from collections.abc import Sequence
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes
from torch import Tensor

from focal_det.losses.initial import compute_initial_loss
from focal_det.losses.targets import DenseTargets
from focal_det.modeling.build import build_cls_loss, build_normalizer, get_prior_prob
from focal_det.modeling.dense_losses import normalize_cls_sums

from .anchors import AnchorSetup, label_record


@torch.no_grad()
def compute_expected_loss(
    cfg: CfgNode, records: Sequence[dict[str, Any]], setup: AnchorSetup
) -> float:
    """`loss_cls` of the first step of one process, with every score at the prior.

    Args:
        records: a batch.
    """
    cls_loss, num_classes = build_cls_loss(cfg), setup.num_classes
    bias = cls_loss.bias(get_prior_prob(cfg), num_classes)
    images: dict[int, tuple[Tensor, Tensor]] = {}  # a batch repeats the images of a small set
    for record in records:
        if id(record) not in images:
            targets, level_sizes = _build_targets(record, setup, cls_loss.needs)
            sums = compute_initial_loss(cls_loss, bias, targets, level_sizes)
            images[id(record)] = (sums, targets.num_pos)
    sums, num_pos = (torch.cat(x) for x in zip(*(images[id(record)] for record in records)))
    divisor = build_normalizer(cfg)(num_pos)
    return float(normalize_cls_sums(cls_loss, sums, divisor))


def _build_targets(
    record: dict[str, Any], setup: AnchorSetup, needs: frozenset[str]
) -> tuple[DenseTargets, list[int]]:
    """The targets of an image, and its number of anchors on each level."""
    objects, anchors, labels, matched_idxs, _ = label_record(record, setup)
    boxes = objects.gt_boxes.tensor[matched_idxs] if len(objects) else torch.zeros(len(labels), 4)
    targets = DenseTargets.build(
        labels[None],
        boxes[None],
        setup.num_classes,
        needs=needs,
        anchors=Boxes.cat(anchors).tensor,
        compute_iou=lambda targets: torch.zeros(targets.gt_labels.shape),
    )
    return targets, [len(x) for x in anchors]
