"""What a dense classification loss does while it trains: who carries it, how sure the model is, and where the positives are.

Shapes: N images, R anchors per image, K classes, C logits per anchor, L levels.
"""

import logging
import math
from collections.abc import Sequence
from typing import Optional

import torch
from detectron2.data import MetadataCatalog
from detectron2.utils.events import get_event_storage
from torch import Tensor

from focal_det.host import LOGGER_NAME, has_event_storage
from focal_det.losses import ClsLoss
from focal_det.losses.base import split_levels
from focal_det.losses.targets import DenseTargets

_MAX_CLASSES = 100  # with more of them, positives are not told by class


def is_telemetry_due(period: int) -> bool:
    """Whether there is a trainer, and this is one of every `period` iterations that its writers follow; never if it is 0."""
    return period > 0 and has_event_storage() and (get_event_storage().iter + 1) % period == 0


def put_telemetry(
    cls_loss: ClsLoss,
    logits: Sequence[Tensor],
    targets: DenseTargets,
    *,
    divisor: Tensor,
    prior_bias: Optional[Tensor],
    dataset_names: Sequence[str],
    level_names: Sequence[str],
) -> None:
    """Give the figures of `compute_telemetry` to the trainer's metrics; class names are of the first data set that has any."""
    metadata = [MetadataCatalog.get(x) for x in dataset_names if x in MetadataCatalog.list()]
    class_names = next(
        (x.thing_classes for x in metadata if x.get("thing_classes")), range(targets.num_classes)
    )
    names = {"class_names": [str(x) for x in class_names], "level_names": level_names}
    values = compute_telemetry(
        cls_loss, logits, targets, divisor=divisor, prior_bias=prior_bias, **names
    )
    for name, value in values.items():
        get_event_storage().put_scalar(f"focal_det/{name}", value, smoothing_hint=False)


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
    """Figures of one training batch, by the names that they have in the metrics; waits for the device.

    Level by level and image by image, so that what it needs is small beside what the step keeps.

    Args:
        logits: per level (N, Ri, C).
        divisor: of the normalizer, () or (N,).
        prior_bias: (C,) initial bias of `cls_score`; None if it is not known.
        class_names: K names; level_names: L names.

    Returns:
        "share_of_positives", "share_of_hardest_negatives" (the hardest 1 %): in [0, 1] of the loss; only for losses of one anchor
        at a time. "max_abs_logit". "mean_p_t": mean score of the positives' own class. "prior_distance": log-odds of the mean score
        over all anchors and classes, less that of the prior; 0 at the start. "normalizer": mean divisor. "num_pos/<level>" and
        "num_pos/<class>": positives of the batch.
    """
    classes, num_classes = targets.gt_labels, targets.num_classes
    values: dict[str, float] = {"normalizer": float(divisor.float().mean())}
    positive_sum, negatives, largest, score_sum = (
        torch.zeros(()),
        [],
        [],
        torch.zeros((), dtype=torch.float64),
    )
    own_scores = []
    for name, (x, labels, iou) in zip(level_names, split_levels(logits, targets)):
        is_pos = (labels >= 0) & (labels < num_classes)
        values[f"num_pos/{name}"] = int(is_pos.sum())
        for i in range(len(x)):
            scores = cls_loss.scores(x[i])
            score_sum = score_sum.to(scores.device) + scores.sum(dtype=torch.float64)
            own_scores.append(scores[is_pos[i]].gather(1, labels[i][is_pos[i]][:, None]).flatten())
            largest.append(x[i].abs().amax())
            if cls_loss.pointwise:
                losses = cls_loss.per_anchor(
                    x[i : i + 1], labels[i : i + 1], None if iou is None else iou[i : i + 1]
                )[0].float()
                positive_sum = positive_sum.to(losses.device) + losses[is_pos[i]].sum()
                negatives.append(losses[labels[i] == num_classes])
    values["max_abs_logit"] = float(torch.stack(largest).amax())
    if negatives:
        values.update(_compute_shares(positive_sum, torch.cat(negatives)))
    if targets.pos_idxs[0].numel():
        values["mean_p_t"] = float(torch.cat(own_scores).float().mean())
    if prior_bias is not None:
        mean_score = float(score_sum) / (classes.numel() * num_classes)
        values["prior_distance"] = _logit(mean_score) - _logit(
            float(cls_loss.scores(prior_bias[None]).double().mean())
        )
    if num_classes <= _MAX_CLASSES:
        counts = torch.bincount(classes[targets.pos_idxs], minlength=num_classes).tolist()
        values.update({f"num_pos/{name}": count for name, count in zip(class_names, counts)})
    return values


def _compute_shares(positive_sum: Tensor, negatives: Tensor) -> dict[str, float]:
    """Shares of the positives, and of the hardest 1 % of the negatives."""
    total = positive_sum + negatives.sum()
    hardest = (
        negatives.topk(math.ceil(len(negatives) / 100)).values.sum()
        if len(negatives)
        else total.new_zeros(())
    )
    shares = torch.stack([positive_sum, hardest]) / total.clamp(min=1e-30)
    return dict(zip(("share_of_positives", "share_of_hardest_negatives"), shares.tolist()))


def _logit(probability: float) -> float:
    probability = min(max(probability, 1e-30), 1 - 1e-12)
    return math.log(probability / (1 - probability))


def report_first_loss(first: float, initial: float) -> None:
    """Say what the classification loss starts with, and warn if it is far from what the prior makes of it."""
    message = f"loss_cls of the first batch is {first:.4g}; with every score at the prior it would be {initial:.4g}"
    if initial / 2 <= first <= 2 * initial or first != first:  # of NaN, the trainer has more to say
        logging.getLogger(LOGGER_NAME).info(message)
    else:
        logging.getLogger(LOGGER_NAME).warning(
            f"{message}. Such a difference comes from features that are far too large: compare MODEL.PIXEL_MEAN, PIXEL_STD and the "
            "NORM keys with what MODEL.WEIGHTS was trained with."
        )
