"""Anchors that fit the boxes of a data set better than those of a config."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Optional

import numpy as np
from torch import Tensor

from .anchors import Anchors, AnchorSetup
from .best_iou import compute_best_iou, resize_boxes

# Factors for all sizes, the nearest to 1 first: of equally good ones, the smallest change is taken.
_SCALES = sorted(
    (2 ** (x / 2) for x in range(-6, 4) if x != 0), key=lambda scale: abs(math.log(scale))
)
# Smallest gain in the share of boxes reached that is worth a change of the anchors.
MIN_GAIN = 0.01
# A finer level has four times the cells of the next, and takes time and memory.
_MIN_GAIN_OF_LEVEL = 0.02


@dataclass(frozen=True)
class _Trial:
    """Anchors that were tried, and the share of the boxes they reach."""

    anchors: Anchors
    score: float


@dataclass(frozen=True)
class _Search:
    """The boxes that anchors are tried on.

    Attributes:
        boxes, image_sizes: of `resize_boxes`.
        setup: with Detectron2's DefaultAnchorGenerator.
    """

    boxes: Tensor
    image_sizes: Tensor
    setup: AnchorSetup

    def compute_score(self, setup: AnchorSetup) -> float:
        """Share of the boxes reached by the anchors of a setup, in [0, 1]."""
        best_iou = compute_best_iou(self.boxes, self.image_sizes, setup)
        is_reached = best_iou >= setup.reach_thresh
        return float(is_reached.double().mean())

    def improve(self, best: _Trial, candidates: Sequence[Anchors], min_gain: float) -> _Trial:
        """Try candidates; return the first with the best score, or `best` if none gains enough."""
        trials = [_Trial(x, self.compute_score(self.setup.with_anchors(x))) for x in candidates]
        found = max(trials, key=lambda trial: trial.score)
        if found.score > best.score and found.score >= best.score + min_gain:
            return found
        return best


def suggest_anchors(
    records: Sequence[Mapping[str, Any]],
    setup: AnchorSetup,
    anchors: Anchors,
    *,
    may_add_level: bool,
) -> Optional[Anchors]:
    """Search for anchors that reach more boxes, with as many in a cell as before.

    Other sizes are tried first, then other aspect ratios, then a finer level; each change is kept
    only if it is worth it. With as many anchors in a cell, the head of a checkpoint still fits.

    Args:
        records: images to try the anchors on.
        setup: with Detectron2's DefaultAnchorGenerator.
        anchors: those of `setup`.
        may_add_level: whether the backbone can have a level of half the smallest stride.

    Returns:
        The anchors; None if none reach at least another 1 % of the boxes.
    """
    boxes, image_sizes = resize_boxes(records, setup.resize, progress="other anchors")
    if not len(boxes):
        return None
    search = _Search(boxes, image_sizes, setup)
    now = _Trial(anchors, search.compute_score(setup))

    best = search.improve(now, [_scale(anchors, x) for x in _SCALES], MIN_GAIN)
    ratios = _get_typical_ratios(boxes, len(anchors.aspect_ratios))
    best = search.improve(best, [replace(best.anchors, aspect_ratios=ratios)], MIN_GAIN)
    if may_add_level:
        # The old sizes, too: smaller ones may only have made up for the missing level.
        candidates = [_add_level(anchors), _add_level(best.anchors)]
        best = search.improve(best, candidates, _MIN_GAIN_OF_LEVEL)
    return best.anchors if best is not now else None


def _get_typical_ratios(boxes: Tensor, num: int) -> list[float]:
    """`num` evenly spaced quantiles of height / width of (M, 4) boxes."""
    width, height = (boxes[:, 2:] - boxes[:, :2]).numpy().T
    quantiles = np.quantile(height / width, (np.arange(num) + 0.5) / num)
    return [_round(x) for x in quantiles]


def _scale(anchors: Anchors, factor: float) -> Anchors:
    return replace(anchors, sizes=[[_round(factor * x) for x in level] for level in anchors.sizes])


def _add_level(anchors: Anchors) -> Anchors:
    """Add a level with half the stride and half the sizes of the finest."""
    finer = [_round(x / 2) for x in anchors.sizes[0]]
    return replace(
        anchors, sizes=[finer, *anchors.sizes], strides=[anchors.strides[0] // 2, *anchors.strides]
    )


def _round(value: float) -> float:
    """Three significant digits: sizes for people to read."""
    return float(f"{value:.3g}")
