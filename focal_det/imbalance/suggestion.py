"""Anchors that fit the boxes of a data set better than those of a config."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Optional

import numpy as np

from .anchors import Anchors, AnchorSetup, compute_best_iou, resize_boxes

# Factors of the sizes that are tried, the nearest first, so that of equals the smallest change is taken.
_SCALES = sorted((2 ** (x / 2) for x in range(-6, 4)), key=lambda x: abs(math.log(x)))
MIN_GAIN, _MIN_GAIN_OF_LEVEL = (
    0.01,
    0.02,
)  # in share of the boxes reached, for which a change is worth it


def suggest_anchors(
    records: Sequence[Mapping[str, Any]],
    setup: AnchorSetup,
    anchors: Anchors,
    *,
    may_add_level: bool,
) -> Optional[Anchors]:
    """Anchors that reach more boxes: other sizes, then other aspect ratios, then a finer level, each only if it is worth it.

    There are as many in a cell as before, so that a checkpoint's head still fits.

    Args:
        records: images to try them on.
        setup: with Detectron2's DefaultAnchorGenerator.
        anchors: those of `setup`.
        may_add_level: whether the backbone can have a level of half the smallest stride.

    Returns:
        None if nothing reaches 1 % more boxes.
    """
    boxes, image_sizes = resize_boxes(records, setup.resize, progress="other anchors")
    if not len(boxes):
        return None

    def measure(setup: AnchorSetup) -> float:
        """Share of the boxes reached."""
        is_reached = compute_best_iou(boxes, image_sizes, setup) >= setup.matcher.thresholds[-2]
        return float(is_reached.double().mean())

    def try_all(
        trials: Sequence[Anchors], best: tuple[Anchors, float], gain: float
    ) -> tuple[Anchors, float]:
        found = best
        for trial in trials:
            score = measure(setup.with_anchors(trial))
            found = (trial, score) if score > found[1] else found
        return found if found[1] >= best[1] + gain else best

    best = try_all(
        [_scale(anchors, x) for x in _SCALES if x != 1], (anchors, measure(setup)), MIN_GAIN
    )
    num = len(anchors.aspect_ratios)
    width, height = (boxes[:, 2:] - boxes[:, :2]).numpy().T
    ratios = np.quantile(height / width, (np.arange(num) + 0.5) / num)
    best = try_all([replace(best[0], aspect_ratios=[_round(x) for x in ratios])], best, MIN_GAIN)
    if may_add_level:
        best = try_all([_add_level(anchors), _add_level(best[0])], best, _MIN_GAIN_OF_LEVEL)
    return best[0] if best[0] is not anchors else None


def _scale(anchors: Anchors, factor: float) -> Anchors:
    return replace(anchors, sizes=[[_round(factor * x) for x in level] for level in anchors.sizes])


def _add_level(anchors: Anchors) -> Anchors:
    """With a level of half the smallest stride and half its sizes."""
    finer = [_round(x / 2) for x in anchors.sizes[0]]
    return replace(
        anchors, sizes=[finer, *anchors.sizes], strides=[anchors.strides[0] // 2, *anchors.strides]
    )


def _round(value: float) -> float:
    return float(f"{value:.3g}")
