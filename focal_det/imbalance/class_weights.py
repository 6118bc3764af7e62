"""Weights and priors per class, from the objects and positive anchors of a data set.

What a detector does not take is left out.

Shapes: K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
import torch

from focal_det.messages import MAX_NAME, describe_unknown, to_line
from focal_det.modeling.assigners import check_gt_classes
from focal_det.modeling.settings import ClassSettings

from .anchors import AnchorFit
from .read import get_objects

WEIGHT_METHODS = ("inverse", "sqrt", "effective")
# Above it, the negatives of a class would weigh next to nothing.
MAX_ALPHA = 0.95
# The bias of a prior of 1 would be infinite.
_MAX_PRIOR = 0.999


@dataclass(frozen=True)
class ClassWeights:
    """Counts, weights and priors of the classes of a data set.

    Attributes:
        class_names: K names.
        counts: (K,) int64 objects.
        alphas: (K,) weights of the positives in (0, 1), by method; empty if the loss takes none.
        method: key of the alphas in use.
        priors: (K,) in (0, 1), see `compute_class_weights`; None if the detector takes none.
        scalar_alpha, scalar_prior: numbers of the config that those per class replace.
        is_prior_measured: whether priors are positives per anchor, not shares of a given sum.
    """

    class_names: Sequence[str]
    counts: np.ndarray
    alphas: Mapping[str, np.ndarray]
    method: str
    priors: Optional[np.ndarray]
    scalar_alpha: float
    scalar_prior: float
    is_prior_measured: bool = True

    @property
    def chosen_alphas(self) -> Optional[np.ndarray]:
        """(K,) alphas in use; None if the loss takes none."""
        return self.alphas.get(self.method)

    @property
    def labels(self) -> list[str]:
        """Class names for people: without control characters, long ones shortened."""
        return [to_line(x, MAX_NAME) for x in self.class_names]

    @property
    def order(self) -> np.ndarray:
        """(K,) class ids in decreasing order of objects."""
        # Classes with equally many objects stay in the order of their ids.
        return np.argsort(-self.counts, kind="stable")


def count_objects(records: Sequence[Mapping[str, Any]], num_classes: int) -> np.ndarray:
    """Count the objects of each class, without crowds, which training leaves out.

    Args:
        records: Detectron2's dataset dicts.

    Returns:
        (K,) int64.

    Raises:
        ValueError: a class id outside 0..K-1; names the image.
    """
    counts = np.zeros(num_classes, np.int64)
    for record in records:
        ids = torch.tensor([x["category_id"] for x in get_objects(record)], dtype=torch.int64)
        check_gt_classes(ids, num_classes, str(record["file_name"]))
        np.add.at(counts, ids.numpy(), 1)
    return counts


def compute_class_alphas(
    counts: np.ndarray,
    *,
    method: str,
    mean: float,
    max_alpha: float = MAX_ALPHA,
    beta: float = 0.999,
) -> np.ndarray:
    """Weights of the positives per class, larger for rare classes, with a given mean.

    "inverse" is proportional to 1 / n, "sqrt" to 1 / sqrt(n), "effective" to 1 / E_n with the
    effective number of objects E_n = (1 - beta^n) / (1 - beta), proposition 1 of arXiv 1901.05555.
    What is cut off at `max_alpha` goes to the other classes.

    Args:
        counts: (K,) objects n of each class, >= 0; a class without objects gets the weight of one
            with a single object, and does not count in the mean.
        method: one of WEIGHT_METHODS.
        mean: sum(n alpha) / sum(n) of the result, in (0, max_alpha]; the scalar alpha.
        max_alpha: largest alpha allowed, in (0, 1).
        beta: in [0, 1), for "effective": 0 weights all classes alike; towards 1 it is "inverse".

    Returns:
        (K,) float64 in (0, max_alpha]; a rarer class never has a smaller value.

    Raises:
        ValueError: an argument out of range, or no objects at all.
    """
    check_alpha_args(method, mean, max_alpha, beta)
    if not counts.any() or counts.min() < 0:
        message = "counts must be >= 0 with at least one object in all"
        raise ValueError(f"{message}, got {counts.tolist()}")
    # 1 / 0 would be infinite, and leave nothing for the classes that have objects.
    num_objects = np.maximum(counts, 1).astype(np.float64)
    effective_number = {
        "inverse": num_objects,
        "sqrt": np.sqrt(num_objects),
        "effective": (1 - beta**num_objects) / (1 - beta),
    }
    return _scale_to_mean(1 / effective_number[method], counts, mean, max_alpha)


def check_alpha_args(
    method: str, mean: float, max_alpha: float, beta: float, *, mean_key: str = "FOCAL_LOSS_ALPHA"
) -> None:
    """Refuse arguments of `compute_class_alphas` that are out of range.

    Args:
        mean_key: of the scalar alpha, for the message.
    """
    if method not in WEIGHT_METHODS:
        raise ValueError(describe_unknown("method (--method)", method, WEIGHT_METHODS))
    if not 0 < max_alpha < 1:
        raise ValueError(f"max_alpha (--max-alpha) must be in (0, 1), got {max_alpha}")
    if not 0 < mean <= max_alpha:
        raise ValueError(
            f"the scalar alpha ({mean_key}) must be in (0, {max_alpha}], got {mean}: it "
            "becomes the mean of the alphas per class, and none of them may exceed max_alpha "
            "(--max-alpha)"
        )
    if not 0 <= beta < 1:
        raise ValueError(f"beta (--beta) must be in [0, 1), got {beta}")


def _scale_to_mean(weights: np.ndarray, counts: np.ndarray, mean: float, cap: float) -> np.ndarray:
    """min(scale * weights, cap), with the scale for which the count-weighted mean is `mean`."""
    capped = np.zeros(len(weights), bool)
    # What is cut off raises the scale, which may cut off more classes: at most K rounds.
    while counts[~capped].any():
        rest = mean * counts.sum() - cap * counts[capped].sum()
        scale = rest / (weights * counts)[~capped].sum()
        over = ~capped & (scale * weights > cap)
        if not over.any():
            return np.where(capped, cap, scale * weights)
        capped |= over
    # Every class with objects is at the cap, which is then the mean.
    return np.full(len(weights), cap)


def compute_class_priors(positives: np.ndarray, num_anchors: int) -> np.ndarray:
    """Priors per class: positives per anchor.

    Args:
        positives: (K,) positive anchors; a class without any gets the prior of a class with one.
        num_anchors: all anchors, > 0.

    Returns:
        (K,) float64 in (0, 0.999].
    """
    return np.minimum(np.maximum(positives, 1) / num_anchors, _MAX_PRIOR)


def share_out_prior(counts: np.ndarray, total: float) -> np.ndarray:
    """Priors per class in proportion to the objects, with a given sum.

    Args:
        counts: (K,) objects of each class; a class without any counts as one with a single object.
        total: sum of the priors, > 0.

    Returns:
        (K,) float64 in (0, 0.999].
    """
    num_objects = np.maximum(counts, 1)
    return np.minimum(total * num_objects / num_objects.sum(), _MAX_PRIOR)


def compute_class_weights(
    class_names: Sequence[str],
    counts: np.ndarray,
    settings: ClassSettings,
    *,
    alpha: float,
    fit: Optional[AnchorFit] = None,
    method: str = "sqrt",
    max_alpha: float = MAX_ALPHA,
    beta: float = 0.999,
) -> ClassWeights:
    """Alpha and pi of each class.

    Args:
        class_names: K names.
        counts: (K,) int64 objects of each class.
        settings: what the detector takes, and the scalars that the numbers per class replace.
        alpha: mean of the alphas; the alpha of `settings`, if that is in (0, max_alpha].
        fit: of the anchors whose positives are counted; not needed if pi is shared out.
        method: its alphas are used; those of the other methods are computed for comparison.
        max_alpha, beta: as for `compute_class_alphas`.

    Raises:
        ValueError: as for `compute_class_alphas`.
    """
    limits = {"mean": alpha, "max_alpha": max_alpha, "beta": beta}
    alphas = {}
    if settings.alpha_key:
        alphas = {x: compute_class_alphas(counts, method=x, **limits) for x in WEIGHT_METHODS}
    return ClassWeights(
        class_names=class_names,
        counts=counts,
        alphas=alphas,
        method=method,
        priors=_compute_priors(counts, settings, fit),
        scalar_alpha=alpha,
        scalar_prior=settings.prior,
        is_prior_measured=settings.total_prior is None,
    )


def _compute_priors(
    counts: np.ndarray, settings: ClassSettings, fit: Optional[AnchorFit]
) -> Optional[np.ndarray]:
    """Positives per anchor where anchors have classes; otherwise shares of the total prior.

    How many proposals will be positive is not known before training.
    """
    if not settings.prior_key:
        return None
    if settings.total_prior is not None:
        return share_out_prior(counts, settings.total_prior)
    if fit is None:
        raise ValueError("pi per class is measured on anchors: fit must not be None")
    return compute_class_priors(fit.positives, fit.num_anchors)


def get_weight_values(
    weights: ClassWeights, settings: ClassSettings, max_alpha: float = MAX_ALPHA
) -> dict[str, list[float]]:
    """Priors and weights as values of a config, by key."""
    values = {}
    if weights.priors is not None:
        values[settings.prior_key] = [round_weight(x) for x in weights.priors]
    if weights.chosen_alphas is not None:
        # Rounding may lift an alpha above its limit.
        alphas = [min(round_weight(x), max_alpha) for x in weights.chosen_alphas]
        values[settings.alpha_key] = alphas
    return values


def round_weight(value: float) -> float:
    """Four significant digits, as weights are written."""
    return float(f"{value:.4g}")
