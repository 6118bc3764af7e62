"""The classification loss of a run's first step, from its labels alone.

No image is opened and no model is run.
"""

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
        records: a batch of Detectron2's dataset dicts; images may repeat.

    Returns:
        The loss as the model logs it, in nats.
    """
    cls_loss = build_cls_loss(cfg)
    normalizer = build_normalizer(cfg)
    bias = cls_loss.bias(get_prior_prob(cfg), setup.num_classes)
    # A batch repeats the images of a small set, and labelling is what takes time.
    sums_by_image: dict[int, tuple[Tensor, Tensor]] = {}
    for record in records:
        if id(record) not in sums_by_image:
            targets, level_sizes = _build_targets(record, setup, cls_loss.needs)
            sums = compute_initial_loss(cls_loss, bias, targets, level_sizes)
            sums_by_image[id(record)] = (sums, normalizer.count(targets))
    batch = [sums_by_image[id(record)] for record in records]
    sums = torch.cat([sums for sums, _ in batch])
    divisor = normalizer(torch.cat([counts for _, counts in batch]))
    return float(normalize_cls_sums(cls_loss, sums, divisor))


def _build_targets(
    record: dict[str, Any], setup: AnchorSetup, needs: frozenset[str]
) -> tuple[DenseTargets, list[int]]:
    """Targets of an image, and its number of anchors per level."""
    labelled = label_record(record, setup)
    targets = DenseTargets.build(
        labelled.labels[None],
        labelled.get_gt_boxes()[None],
        setup.num_classes,
        needs=needs,
        anchors=Boxes.cat(labelled.anchors).tensor,
        # The IoU of predicted boxes takes a model, and none is run.
        compute_iou=lambda targets: torch.zeros(targets.gt_labels.shape),
    )
    return targets, [len(x) for x in labelled.anchors]
