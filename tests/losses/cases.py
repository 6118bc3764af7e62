"""What the contract knows of each loss: arguments to try, an independent reference, its kinks.

A reference is written from the formula of the paper, densely: every anchor by every class,
probabilities instead of their logarithms, gradients by automatic differentiation in float64.
To cover a new loss, add a `Case`; a registered loss without one fails.
"""

import inspect
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou

from focal_det.losses.targets import DenseTargets

GAMMAS = [0, 0.1, 0.2, 0.5, 1, 1.5, 2, 5]
NUM_CLASSES = 3
# IoU values in the tests; the quality focal loss has a kink where p equals one of them.
IOUS = [0.25, 0.6, 0.9, 1.0]


@dataclass(frozen=True)
class Case:
    """A loss under the contract.

    Attributes:
        reference: makes from constructor arguments a function of logits (N, R, C) float64 and
            targets that returns (N,). What it keeps between calls is the state of a stateful loss.
            An argument `num_classes` is passed where it takes one.
        usual: constructor arguments under which every term of the formula counts. Tests whose
            outcome does not depend on the arguments take these alone.
        grid: further constructor arguments, for values and first gradients.
        kinks: logits at which value or gradient jump, or cancel, for given arguments.
        radius: how far the tests stay away from a kink.
        by_level: whether the reference takes logits per level (N, Ri, C), as levels make a
            difference.
        error_driven: whether the gradient is defined by the paper and is not the derivative of the
            value. The reference then has that gradient; nothing is compared with differences.
        contrast: least ratio of the scores of objects to those of background after a short descent.
    """

    reference: Callable[..., Callable[[Tensor, DenseTargets], Tensor]]
    usual: dict[str, Any]
    grid: list[dict[str, Any]]
    kinks: Callable[..., Iterable[float]] = lambda **args: ()
    radius: float = 0.3
    by_level: bool = False
    error_driven: bool = False
    contrast: float = 3.0

    @property
    def arguments(self) -> list[dict[str, Any]]:
        """The usual constructor arguments, then the rest of the grid."""
        return [self.usual, *(args for args in self.grid if args != self.usual)]

    def make_reference(
        self, args: dict[str, Any], num_classes: int = NUM_CLASSES
    ) -> Callable[[Sequence[Tensor], DenseTargets], Tensor]:
        """The reference with logits per level, as a loss takes them."""
        takes_num_classes = "num_classes" in inspect.signature(self.reference).parameters
        more = {"num_classes": num_classes} if takes_num_classes else {}
        reference = self.reference(**args, **more)
        if self.by_level:
            return reference
        return lambda levels, targets: reference(torch.cat(levels, dim=1), targets)


class Probabilities:
    """p and 1 - p of float64 logits and their logarithms, none by a difference that cancels."""

    def __init__(self, x: Tensor) -> None:
        assert x.dtype == torch.float64
        self.p, self.not_p = 1 / (1 + torch.exp(-x)), 1 / (1 + torch.exp(x))
        self.log_p, self.log_not_p = _log(self.p, self.not_p), _log(self.not_p, self.p)


def _log(p: Tensor, not_p: Tensor) -> Tensor:
    # Clamped where the other form counts, whose gradient would be 0 times infinity.
    return torch.where(p < 0.5, torch.log(p), torch.log1p(-not_p.clamp(max=0.75)))


def one_hot(targets: DenseTargets) -> Tensor:
    """(N, R, K) bool: the class of each anchor that has one."""
    labels = torch.where(targets.gt_labels < 0, targets.num_classes, targets.gt_labels)
    return F.one_hot(labels, targets.num_classes + 1)[..., :-1].bool()


def is_valid(targets: DenseTargets) -> Tensor:
    """(N, R, 1) bool: the anchors that are not ignored."""
    return (targets.gt_labels >= 0)[..., None]


def binary(term: Callable[..., Tensor]) -> Callable[..., Callable[[Tensor, DenseTargets], Tensor]]:
    """A reference from `term(right, positive, targets, **args)`, with `right` that of p_t."""

    def make(**args: Any) -> Callable[[Tensor, DenseTargets], Tensor]:
        def reference(x: Tensor, targets: DenseTargets) -> Tensor:
            positive = one_hot(targets)
            terms = term(Probabilities(torch.where(positive, x, -x)), positive, targets, **args)
            return (terms * is_valid(targets)).sum(dim=(1, 2))

        return reference

    return make


def alpha_t(alpha: Any, positive: Tensor) -> Tensor:
    if not isinstance(alpha, Tensor) and alpha == -1:
        return torch.ones(())
    return torch.where(positive, alpha, 1 - alpha)


def focal(
    right, positive, targets, *, alpha=0.25, gamma=2.0, alpha_per_class=(), gamma_per_class=()
):
    # Eq. 5 of arXiv 1708.02002.
    alpha = torch.tensor(alpha_per_class) if alpha_per_class else alpha
    gamma = torch.tensor(gamma_per_class) if gamma_per_class else gamma
    return -alpha_t(alpha, positive) * right.not_p**gamma * right.log_p


def focal_star(*, alpha=0.25, gamma=2.0, beta=1.0):
    # Eq. 7 and 8 of arXiv 1708.02002.
    def reference(x, targets):
        positive = one_hot(targets)
        p_star = Probabilities(gamma * torch.where(positive, x, -x) + beta)
        terms = -alpha_t(alpha, positive) * p_star.log_p / gamma
        return (terms * is_valid(targets)).sum(dim=(1, 2))

    return reference


def softmax_focal(*, alpha=0.25, gamma=2.0):
    def reference(x, targets):
        probs = torch.exp(x) / torch.exp(x).sum(dim=-1, keepdim=True)
        right = F.one_hot(targets.gt_labels.clamp(min=0), targets.num_classes + 1).bool()
        p_t, not_p_t = (probs * right).sum(dim=-1), (probs * ~right).sum(dim=-1)
        has_class = targets.gt_labels < targets.num_classes
        terms = -alpha_t(alpha, has_class) * not_p_t**gamma * _log(p_t, not_p_t)
        return (terms * (targets.gt_labels >= 0)).sum(dim=1)

    return reference


def hinge(right, positive, targets, *, alpha=0.25, threshold=0.9):
    return alpha_t(alpha, positive) * (right.not_p - (1 - threshold)).clamp(min=0)


def mine_all(
    losses: Tensor,
    targets: DenseTargets,
    image: int,
    *,
    batch: int,
    nms_thresh: float,
    neg_per_pos: int,
) -> list[int]:
    """Hard example mining as one would explain it.

    Anchors come one after the other by falling loss, and each is compared with all kept ones.
    """
    labels = targets.gt_labels[image]
    iou = box_iou(targets.anchors[image], targets.anchors[image])
    kept: list[int] = []
    for anchor in sorted(range(len(losses)), key=lambda i: (-losses[i].item(), i)):
        if labels[anchor] >= 0 and all(iou[anchor, other] <= nms_thresh for other in kept):
            kept.append(anchor)
    if not neg_per_pos:
        return kept[:batch]
    positives = [i for i in kept if labels[i] < targets.num_classes][: batch // (neg_per_pos + 1)]
    negatives = [i for i in kept if labels[i] == targets.num_classes]
    return positives + negatives[: neg_per_pos * max(len(positives), 1)]


def ohem(*, batch=128, nms_thresh=0.5, neg_per_pos=0):
    def reference(x, targets):
        terms = -Probabilities(torch.where(one_hot(targets), x, -x)).log_p.sum(dim=-1)
        means = []
        for image, losses in enumerate(terms):
            kept = mine_all(
                losses, targets, image, batch=batch, nms_thresh=nms_thresh, neg_per_pos=neg_per_pos
            )
            means.append(losses[kept].sum() / max(len(kept), 1))
        return torch.stack(means)

    return reference


def quality_terms(x, targets, beta):
    # Eq. 2 of arXiv 2006.04388; sigma - y as the difference of the smaller numbers.
    y = one_hot(targets) * targets.iou.double()[..., None]
    p = Probabilities(x)
    distance = torch.where(p.p < 0.5, y - p.p, p.not_p - (1 - y)).abs()
    return -(distance**beta) * ((1 - y) * p.log_not_p + y * p.log_p)


def quality_focal(*, beta=2.0):
    def reference(x, targets):
        return (quality_terms(x, targets, beta) * is_valid(targets)).sum(dim=(1, 2))

    return reference


def varifocal(*, neg_weight=0.75, gamma=2.0):
    def reference(x, targets):
        q = one_hot(targets) * targets.iou.double()[..., None]
        p = Probabilities(x)
        positive = -q * (q * p.log_p + (1 - q) * p.log_not_p)
        terms = torch.where(q > 0, positive, -neg_weight * p.p**gamma * p.log_not_p)
        return (terms * is_valid(targets)).sum(dim=(1, 2))

    return reference


def matchability_aware(*, gamma=1.5, neg_weight=1.0, detach_weight=False):
    # Cross entropy with target q^gamma; negatives as in `loss_labels_mal` of DEIM.
    def reference(x, targets):
        target = targets.iou.double()[..., None] ** gamma
        p = Probabilities(x)
        power = p.p.detach() if detach_weight else p.p
        positive = -(target * p.log_p + (1 - target) * p.log_not_p)
        negative = -neg_weight * power**gamma * p.log_not_p
        terms = torch.where(one_hot(targets), positive, negative)
        return (terms * is_valid(targets)).sum(dim=(1, 2))

    return reference


def poly_focal(right, positive, targets, *, alpha=0.25, gamma=2.0, epsilon=1.0):
    # FL + epsilon q^(gamma + 1) with q = 1 - p_t, and for epsilon near -1 not by a difference:
    # -log(1 - q) - q is the integral of t / (1 - t) from 0 to q, that is q^2 times the integral
    # of u / (1 - q u) over [0, 1].
    nodes, weights = (torch.from_numpy(v) for v in np.polynomial.legendre.leggauss(60))
    u, weights = (nodes + 1) / 2, weights / 2
    q = right.not_p
    integral = (weights * u / (1 - q[..., None].clamp(max=0.5) * u)).sum(dim=-1)
    higher = torch.where(q < 0.5, q**2 * integral, -right.log_p - q)
    return alpha_t(alpha, positive) * q**gamma * ((1 + epsilon) * q + higher)


def ghm(*, num_bins=30, momentum=0.75):
    # Densities of arXiv 1811.05181 with unit regions, of which those count that are not empty;
    # 1 / density is beta / N. As in the authors' code, each level has a loss and a density.
    averages = {}

    def of_level(level, x, positive, valid):
        right = Probabilities(torch.where(positive, x, -x))
        bins = (right.not_p.detach() * num_bins).long().clamp(max=num_bins - 1)
        terms = [((bins == j) & valid).sum() for j in range(num_bins)]
        counts = torch.stack(terms) / max(len(x), 1)
        num_regions = (counts > 0).sum()
        if level in averages and averages[level].sum() > 0:
            counts = momentum * averages[level] + (1 - momentum) * counts
        averages[level] = counts
        weights = torch.where(valid, 1 / (num_regions * counts[bins]).clamp(min=1e-30), 0.0)
        return (-right.log_p * weights).sum(dim=(1, 2))

    def reference(levels, targets):
        sizes = [x.shape[1] for x in levels]
        positives = one_hot(targets).split(sizes, dim=1)
        valids = is_valid(targets).split(sizes, dim=1)
        triples = zip(levels, positives, valids)
        return sum(
            of_level(i, x, positive, valid.expand_as(x))
            for i, (x, positive, valid) in enumerate(triples)
        )

    return reference


def equalized(make_terms, *, num_classes, gamma, scale):
    """A loss (N, R, K) whose gamma and weight follow the gradients of the steps before.

    Args:
        make_terms: from logits, targets and (K,) gammas to unweighted terms.
    """
    state = {"pos": torch.zeros(num_classes).double(), "neg": torch.zeros(num_classes).double()}

    def reference(x, targets):
        ratio = torch.ones(num_classes).double()
        seen = state["neg"] > 0
        ratio[seen] = (state["pos"] / state["neg"])[seen].clamp(max=1)
        gamma_k = gamma + scale * (1 - ratio)
        terms = make_terms(x, targets, gamma_k) * gamma_k / gamma * is_valid(targets)
        with torch.enable_grad():
            (grad,) = torch.autograd.grad(terms.sum(), x, retain_graph=True)
        positive = one_hot(targets)
        state["pos"] += (grad.abs() * positive).sum(dim=(0, 1))
        state["neg"] += (grad.abs() * ~positive).sum(dim=(0, 1))
        return terms.sum(dim=(1, 2))

    return reference


def equalized_focal(*, num_classes, alpha=0.25, gamma=2.0, scale=8.0):
    def make_terms(x, targets, gamma_k):
        positive = one_hot(targets)
        right = Probabilities(torch.where(positive, x, -x))
        return -alpha_t(alpha, positive) * right.not_p**gamma_k * right.log_p

    return equalized(make_terms, num_classes=num_classes, gamma=gamma, scale=scale)


def equalized_quality_focal(*, num_classes, gamma=2.0, scale=4.0):
    return equalized(quality_terms, num_classes=num_classes, gamma=gamma, scale=scale)


def asymmetric(*, gamma_pos=0.0, gamma_neg=4.0, shift=0.05, detach_weight=False):
    def weight(base, gamma):
        return (base.detach() if detach_weight else base) ** gamma

    def reference(x, targets):
        p = Probabilities(x)
        positive = -weight(p.not_p, gamma_pos) * p.log_p
        p_m = (p.p - shift).clamp(min=1e-12) if shift else p.p
        log_not_p_m = torch.where(p.p < 0.5, torch.log1p(-p_m), torch.log(p.not_p + shift))
        negative = torch.where(p.p > shift, -weight(p_m, gamma_neg) * log_not_p_m, 0.0)
        return (torch.where(one_hot(targets), positive, negative) * is_valid(targets)).sum(
            dim=(1, 2)
        )

    return reference


def sampling_free(right, positive, targets):
    return -right.log_p


def rank_sort(*, delta=0.5):
    """RS loss as arXiv 2107.11669 puts it: positive by positive, against all other logits."""

    def above(difference):
        if delta == 0:
            return (difference >= 0).double()
        return (difference / (2 * delta) + 0.5).clamp(0, 1)

    def reference(x, targets):
        positive = one_hot(targets)
        negative = is_valid(targets) & ~positive
        y = targets.iou.double()[..., None].expand_as(x)[positive]
        pos_logits = x.detach()[positive]
        neg_logits = x.detach()[negative]
        pos_grad = torch.zeros_like(pos_logits)
        neg_grad = torch.zeros_like(neg_logits)
        errors = torch.zeros_like(pos_logits)
        for i, logit_i in enumerate(pos_logits):
            pos_above = above(pos_logits - logit_i)
            neg_above = above(neg_logits - logit_i)
            belongs_above = pos_above * (y >= y[i])
            missorted = pos_above * (y < y[i])
            # Eq. 7 and 8: the current errors, and the sorting error in the right order.
            rank_error = neg_above.sum() / (pos_above.sum() + neg_above.sum())
            sort_error = (pos_above * (1 - y)).sum() / pos_above.sum()
            sort_error = sort_error - (belongs_above * (1 - y)).sum() / belongs_above.sum()
            # Eq. 9: what i is to gain, and who is to lose it.
            if neg_above.sum() > 0:
                pos_grad[i] -= rank_error
                neg_grad += rank_error * neg_above / neg_above.sum()
            if missorted.sum() > 0:
                pos_grad[i] -= sort_error
                pos_grad += sort_error * missorted / missorted.sum()
            errors[i] = rank_error + sort_error
        per_logit = torch.zeros_like(x).masked_scatter(positive, errors)
        grad = torch.zeros_like(x).masked_scatter(positive, pos_grad)
        grad = grad.masked_scatter(negative, neg_grad)
        # A mean over the batch, as the mean of one value per image.
        scale = len(x) / max(len(errors), 1)
        update = (grad * x).sum(dim=(1, 2))
        return scale * (per_logit.sum(dim=(1, 2)) + update - update.detach())

    return reference


def logit(p: float) -> float:
    return math.log(p / (1 - p))


def grid(**values: Iterable[Any]) -> list[dict[str, Any]]:
    """All combinations of the values."""
    combinations: list[dict[str, Any]] = [{}]
    for name, options in values.items():
        combinations = [{**c, name: v} for c in combinations for v in options]
    return combinations


PER_CLASS = {"alpha_per_class": [0.1, 0.5, 0.75], "gamma_per_class": [0.0, 0.5, 3.0]}
CASES = {
    "FocalLoss": Case(
        binary(focal),
        usual={"gamma": 2, "alpha": 0.25},
        grid=[*grid(gamma=GAMMAS, alpha=[-1, 0.25]), PER_CLASS],
    ),
    "FocalStarLoss": Case(
        focal_star,
        usual={"gamma": 2, "beta": 1, "alpha": 0.25},
        grid=grid(gamma=GAMMAS[1:], beta=[0, 1], alpha=[0.25]),
    ),
    "SoftmaxFocalLoss": Case(
        softmax_focal,
        usual={"gamma": 2, "alpha": 0.25},
        grid=grid(gamma=GAMMAS, alpha=[-1, 0.25]),
    ),
    "HingeLoss": Case(
        binary(hinge),
        usual={"threshold": 0.9, "alpha": 0.25},
        grid=grid(threshold=[0.5, 0.9, 1.0], alpha=[-1, 0.25]),
        kinks=lambda threshold, **_: (
            [s * logit(threshold) for s in (1, -1)] if threshold < 1 else []
        ),
    ),
    "OHEMLoss": Case(
        ohem,
        usual={"batch": 12, "nms_thresh": 0.3, "neg_per_pos": 3},
        grid=[*grid(batch=[4, 12], nms_thresh=[0.3, 1.0], neg_per_pos=[0, 3]), {"batch": 1000}],
    ),
    "QualityFocalLoss": Case(
        quality_focal,
        usual={"beta": 2},
        grid=grid(beta=GAMMAS),
        kinks=lambda **_: [logit(iou) for iou in IOUS if iou < 1],
        radius=0.4,
    ),
    "VarifocalLoss": Case(
        varifocal,
        usual={"gamma": 2, "neg_weight": 0.75},
        grid=grid(gamma=GAMMAS, neg_weight=[0.75]),
    ),
    "MatchabilityAwareLoss": Case(
        matchability_aware,
        usual={"gamma": 1.5, "neg_weight": 0.75},
        grid=[
            *grid(gamma=GAMMAS, neg_weight=[0.75]),
            {"gamma": 1.5, "neg_weight": 0.75, "detach_weight": True},
        ],
        # The gradient of positives, p - q^gamma, cancels there.
        kinks=lambda gamma, **_: [logit(q**gamma) for q in IOUS if 0 < q**gamma < 1],
    ),
    "PolyFocalLoss": Case(
        binary(poly_focal),
        usual={"gamma": 2, "epsilon": 1.5, "alpha": 0.25},
        grid=grid(gamma=GAMMAS, epsilon=[-1, 0, 1.5], alpha=[0.25]),
    ),
    "GHMCLoss": Case(
        ghm,
        usual={"num_bins": 30, "momentum": 0.75},
        grid=grid(num_bins=[1, 30], momentum=[0, 0.75]),
        kinks=lambda num_bins, **_: [logit(j / num_bins) for j in range(1, num_bins)],
        radius=0.02,
        by_level=True,
    ),
    "EqualizedFocalLoss": Case(
        equalized_focal,
        usual={"gamma": 2, "scale": 8, "alpha": 0.25},
        grid=grid(gamma=GAMMAS[1:], scale=[0, 8], alpha=[0.25]),
    ),
    "EqualizedQualityFocalLoss": Case(
        equalized_quality_focal,
        usual={"gamma": 2, "scale": 4},
        grid=grid(gamma=GAMMAS[1:], scale=[0, 4]),
        kinks=lambda **_: [logit(iou) for iou in IOUS if iou < 1],
        radius=0.4,
    ),
    "RankSortLoss": Case(
        rank_sort,
        usual={"delta": 0.5},
        grid=grid(delta=[0, 0.3, 0.5, 8]),
        error_driven=True,
        # Beyond a distance of delta, a logit counts as ranked: exp(0.5) is 1.6.
        contrast=1.6,
    ),
    "SamplingFreeLoss": Case(binary(sampling_free), usual={}, grid=[]),
    "AsymmetricLoss": Case(
        asymmetric,
        usual={"gamma_pos": 1.5, "gamma_neg": 4.0, "shift": 0.05},
        grid=[
            *grid(gamma_pos=GAMMAS, gamma_neg=[4.0], shift=[0.05]),
            *grid(gamma_pos=[1.0], gamma_neg=GAMMAS, shift=[0, 0.2]),
            *grid(gamma_pos=[0, 1.5], gamma_neg=[0.5, 4.0], shift=[0, 0.05], detach_weight=[True]),
        ],
        kinks=lambda shift, **_: [logit(shift)] if shift else [],
    ),
}
