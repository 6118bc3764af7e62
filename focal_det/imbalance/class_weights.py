"""Weights and priors per class: objects and positives of a data set in, numbers for a config and a picture of them out.

Shapes: K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from focal_det.messages import MAX_NAME, describe_unknown, to_line
from focal_det.modeling.assigners import check_gt_classes

from .anchors import get_objects

WEIGHT_METHODS = ("inverse", "sqrt", "effective")
_MAX_PRIOR = 0.999


@dataclass(frozen=True)
class ClassWeights:
    """What was counted and computed for the classes of a data set.

    Attributes:
        class_names: K names.
        counts: (K,) int64 objects.
        alphas: (K,) weights of the positives in (0, 1), by method.
        method: the one of them that is used.
        priors: (K,) positives per anchor in (0, 1).
        scalar_alpha, scalar_prior: the numbers of the config that those per class take the place of.
    """

    class_names: Sequence[str]
    counts: np.ndarray
    alphas: Mapping[str, np.ndarray]
    method: str
    priors: np.ndarray
    scalar_alpha: float
    scalar_prior: float

    @property
    def labels(self) -> list[str]:
        """The class names as they are shown: without control characters, long ones shortened."""
        return [to_line(x, MAX_NAME) for x in self.class_names]

    @property
    def order(self) -> np.ndarray:
        """(K,) class ids by falling number of objects."""
        return np.argsort(-self.counts, kind="stable")


def count_objects(records: Sequence[Mapping[str, Any]], num_classes: int) -> np.ndarray:
    """(K,) int64: objects of each class in Detectron2's dataset dicts; crowds are left out, as in training.

    Raises:
        ValueError: a class id outside 0..K-1; names the image.
    """
    counts = np.zeros(num_classes, np.int64)
    for record in records:
        ids = [x["category_id"] for x in get_objects(record)]
        check_gt_classes(
            torch.tensor(ids, dtype=torch.int64), num_classes, str(record["file_name"])
        )
        np.add.at(counts, ids, 1)
    return counts


def compute_class_alphas(
    counts: np.ndarray, *, method: str, mean: float, max_alpha: float = 0.95, beta: float = 0.999
) -> np.ndarray:
    """Weights of the positives of each class: larger for rare classes, and over all objects as large as the scalar alpha.

    "inverse" is proportional to 1 / n, "sqrt" to 1 / sqrt(n), "effective" to 1 / E_n with the effective number of objects
    E_n = (1 - beta^n) / (1 - beta), proposition 1 of arXiv 1901.05555. What is cut off at `max_alpha` goes to the other classes.

    Args:
        counts: (K,) objects n of each class, >= 0; one without objects is treated like one with a single object, and not counted
            in the mean.
        method: one of WEIGHT_METHODS.
        mean: sum(n alpha) / sum(n) of the result, in (0, max_alpha]; the scalar alpha.
        max_alpha: the largest alpha allowed, in (0, 1).
        beta: in [0, 1), for "effective": 0 weights all classes alike, towards 1 it becomes "inverse".

    Returns:
        (K,) float64 in (0, max_alpha]; of two classes, the rarer one never has the smaller value.

    Raises:
        ValueError: an argument out of range, or no objects at all.
    """
    if method not in WEIGHT_METHODS:
        raise ValueError(describe_unknown("method (--method)", method, WEIGHT_METHODS))
    if not 0 < max_alpha < 1:
        raise ValueError(f"max_alpha (--max-alpha) must be in (0, 1), got {max_alpha}")
    if not 0 < mean <= max_alpha:
        raise ValueError(
            f"the scalar alpha (FOCAL_LOSS_ALPHA) must be in (0, {max_alpha}], got {mean}: it becomes the mean of "
            "the alphas per class, and none of them may exceed max_alpha (--max-alpha)"
        )
    if not 0 <= beta < 1:
        raise ValueError(f"beta (--beta) must be in [0, 1), got {beta}")
    if not counts.any() or counts.min() < 0:
        raise ValueError(
            f"counts must be >= 0 with at least one object in all, got {counts.tolist()}"
        )
    num_objects = np.maximum(counts, 1).astype(np.float64)
    effective_number = {
        "inverse": num_objects,
        "sqrt": np.sqrt(num_objects),
        "effective": (1 - beta**num_objects) / (1 - beta),
    }
    return _scale_to_mean(1 / effective_number[method], counts, mean, max_alpha)


def _scale_to_mean(weights: np.ndarray, counts: np.ndarray, mean: float, cap: float) -> np.ndarray:
    """min(scale * weights, cap), with the scale for which the count-weighted mean is `mean`; `cap` for all where it is the mean."""
    capped = np.zeros(len(weights), bool)
    while counts[~capped].any():
        rest = mean * counts.sum() - cap * counts[capped].sum()
        scale = rest / (weights * counts)[~capped].sum()
        over = ~capped & (scale * weights > cap)
        if not over.any():
            return np.where(capped, cap, scale * weights)
        capped |= over
    return np.full(len(weights), cap)


def compute_class_priors(positives: np.ndarray, num_anchors: int) -> np.ndarray:
    """(K,) float64 in (0, 1): positives of each class per anchor, at least one positive and at most 0.999."""
    return np.minimum(np.maximum(positives, 1) / num_anchors, _MAX_PRIOR)
