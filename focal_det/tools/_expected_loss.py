"""The classification loss that a training will start with, from its labels alone: no image is opened and no model run."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import focal_det.host  # noqa: F401  (first: says how to get Detectron2)

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes
from torch import Tensor

from focal_det.analysis.anchor_fit import AnchorSetup, label_record
from focal_det.config import build_cls_loss, build_normalizer
from focal_det.head import get_prior_prob
from focal_det.losses.initial import compute_initial_loss
from focal_det.targets import DenseTargets


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
            targets, level_sizes = _build_targets(record, setup)
            sums = compute_initial_loss(cls_loss, bias, targets, level_sizes)
            images[id(record)] = (sums, targets.num_pos)
    sums, num_pos = (torch.cat(x) for x in zip(*(images[id(record)] for record in records)))
    if cls_loss.self_normalized:
        return float(sums.mean())
    return float((sums / build_normalizer(cfg)(num_pos)).sum())


def _build_targets(record: dict[str, Any], setup: AnchorSetup) -> tuple[DenseTargets, list[int]]:
    """The targets of an image, and its number of anchors on each level."""
    objects, anchors, labels, matched_idxs, _ = label_record(record, setup)
    boxes = objects.gt_boxes.tensor[matched_idxs] if len(objects) else torch.zeros(len(labels), 4)
    targets = DenseTargets.from_labels(labels[None], boxes[None], setup.num_classes)
    iou = torch.zeros(1, len(labels))
    targets = replace(targets, anchors=Boxes.cat(anchors).tensor, iou=iou)
    return targets, [len(x) for x in anchors]
