"""The classification loss that a training will start with, from its labels alone: no image is opened and no model run."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import focal_det.host  # noqa: F401  (first: says how to get Detectron2)

import torch
from detectron2.config import CfgNode
from detectron2.structures import Boxes

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
    bias, sums, num_pos = cls_loss.bias(get_prior_prob(cfg), num_classes), [], []
    for record in records:
        objects, anchors, labels, matched_idxs, _ = label_record(record, setup)
        boxes = (
            objects.gt_boxes.tensor[matched_idxs] if len(objects) else torch.zeros(len(labels), 4)
        )
        targets = DenseTargets.from_labels(labels[None], boxes[None], num_classes)
        targets = replace(
            targets, anchors=Boxes.cat(anchors).tensor, iou=torch.zeros(1, len(labels))
        )
        sums.append(compute_initial_loss(cls_loss, bias, targets))
        num_pos.append(targets.num_pos)
    if cls_loss.self_normalized:
        return float(torch.cat(sums).mean())
    return float((torch.cat(sums) / build_normalizer(cfg)(torch.cat(num_pos))).sum())
