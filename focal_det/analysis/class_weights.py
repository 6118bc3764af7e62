"""Weights and priors per class: objects and positives of a data set in, numbers for a config and a picture of them out.

Shapes: K classes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import focal_det.host  # noqa: F401  (first: says how to get Detectron2)

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from focal_det.analysis.anchor_fit import get_objects
from focal_det.data.findings import MAX_NAME, to_line
from focal_det.labeling import check_gt_classes
from focal_det.registry import describe_unknown

WEIGHT_METHODS = ("inverse", "sqrt", "effective")
_MAX_PRIOR = 0.999
_MAX_NAMED_CLASSES = 120  # of more classes, the picture shows the curve without names
_CHOSEN_LINE = {"lw": 2, "color": "tab:red", "marker": "o"}
_THIN_LINE = {"lw": 0.9, "color": "0.35"}
_DASHES = {"inverse": "-", "sqrt": "--", "effective": "-."}


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
            f"the scalar alpha (MODEL.RETINANET.FOCAL_LOSS_ALPHA) must be in (0, {max_alpha}], got {mean}: it becomes the mean of "
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


def draw_class_weights(weights: ClassWeights, out_file: Path, *, title: str) -> None:
    """Draw objects, alpha and pi of each class side by side, a row per class, the most frequent on top.

    Args:
        weights: what is drawn; alphas of other methods than the chosen one as thin lines, the scalars dotted.
        out_file: picture to write; the suffix decides the format.
        title: stands above.
    """
    order, num_classes = weights.order, len(weights.counts)
    named, small = num_classes <= _MAX_NAMED_CLASSES, num_classes > 30
    rows, height = (
        np.arange(num_classes),
        1.5 + (0.2 if small else 0.26) * num_classes if named else 9.0,
    )
    figure = Figure(figsize=(12, max(3.2, height)), layout="constrained")
    figure.suptitle(title, fontsize=11)
    left, middle, right = figure.subplots(1, 3, sharey=True, width_ratios=(1.15, 1, 1))
    left.set(
        xscale="log",
        xlim=(0.7, 4.0 * weights.counts.max()),
        xlabel="objects",
        ylim=(num_classes - 0.4, -0.6),
    )
    for method, alphas in sorted(weights.alphas.items(), key=lambda x: x[0] == weights.method):
        style = _CHOSEN_LINE if method == weights.method else {**_THIN_LINE, "ls": _DASHES[method]}
        label = f"{method} (written)" if method == weights.method else method
        middle.plot(alphas[order], rows, label=label, markersize=4 if named else 0, **style)
    middle.set(xlim=(0, 1), xlabel="alpha: weight of the positives")
    right.plot(
        weights.priors[order],
        rows,
        "o",
        ms=4 if named else 1.5,
        color="tab:green",
        label="positives per anchor",
    )
    right.set(xscale="log", xlabel="pi: probability at the start")
    _draw_scalar(middle, weights.scalar_alpha, f"scalar alpha {weights.scalar_alpha:g}")
    _draw_scalar(right, weights.scalar_prior, f"scalar pi {weights.scalar_prior:g}")
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    if named:
        left.barh(rows, weights.counts[order], color="tab:blue", alpha=0.75)
        left.set_yticks(rows, [weights.labels[i] for i in order], fontsize=8 if small else 10)
        for row, count in enumerate(weights.counts[order]):
            left.text(
                1.1 * max(count, 0.7), row, str(count), va="center", fontsize=7 if small else 9
            )
    else:
        left.fill_betweenx(rows, weights.counts[order], color="tab:blue", alpha=0.75, step="mid")
        left.set_ylabel("rank by number of objects")
    figure.savefig(out_file, dpi=110)


def _draw_scalar(axes: Axes, value: float, label: str) -> None:
    axes.axvline(value, color="black", lw=1, ls=":", label=label)
    axes.legend(fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
