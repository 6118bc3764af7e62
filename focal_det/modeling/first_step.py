"""The report of the first training step: its loss, and the loss at the prior.

Shapes: N images, K classes, A anchors per cell, C = `cls_loss.num_outputs(K)` logits per anchor.
"""

import logging
import math
from collections.abc import Sequence
from typing import Optional

from torch import Tensor, nn

from focal_det.host import LOGGER_NAME
from focal_det.losses import ClsLoss
from focal_det.losses.initial import compute_initial_loss
from focal_det.losses.targets import DenseTargets

from .dense_losses import normalize_cls_sums


def get_prior_bias(head: nn.Module, num_outputs: int) -> Optional[Tensor]:
    """(C,) bias that `cls_score` starts with; None for heads other than FocalRetinaNetHead."""
    bias = getattr(head, "prior_bias", None)
    if not isinstance(bias, Tensor):
        return None
    return bias[:num_outputs]


def compute_loss_at_prior(
    bias: Tensor,
    prior_bias: Tensor,
    cls_loss: ClsLoss,
    targets: DenseTargets,
    divisor: Tensor,
    level_sizes: Sequence[int],
) -> Optional[Tensor]:
    """() classification loss of a batch if every score were the prior.

    None if the layer does not start at the prior, or if the loss is scaled to the box loss, whose
    value says nothing about the scores. All processes must agree on whether it is None, as a loss
    may gather statistics over them.

    Args:
        bias: (A * C,) of the layer that predicts the logits.
        prior_bias: (C,) that the layer starts with.
        divisor: () or (N,), of the normalizer.
        level_sizes: anchors per image of each level.
    """
    if cls_loss.scaled_to_box_loss:
        return None
    # A loaded checkpoint has a trained bias: its first loss says nothing about the prior.
    if not bool((bias.unflatten(0, (-1, len(prior_bias))) == prior_bias).all()):
        return None
    sums = compute_initial_loss(cls_loss, prior_bias, targets, level_sizes)
    return normalize_cls_sums(cls_loss, sums, divisor)


def report_first_loss(name: str, first: float, initial: float) -> None:
    """Log the first classification loss; warn if it is far from the loss at the prior.

    Args:
        name: of the loss in the metrics, such as "loss_cls".
    """
    logger = logging.getLogger(LOGGER_NAME)
    message = (
        f"{name} of the first batch is {first:.4g}; "
        f"with every score at the prior it would be {initial:.4g}"
    )
    # The trainer stops at NaN with a message of its own.
    if math.isnan(first) or initial / 2 <= first <= 2 * initial:
        logger.info(message)
        return
    logger.warning(
        f"{message}. Such a difference usually comes from features that are far too large: "
        "compare MODEL.PIXEL_MEAN, PIXEL_STD and the NORM keys with those that MODEL.WEIGHTS was "
        "trained with."
    )
