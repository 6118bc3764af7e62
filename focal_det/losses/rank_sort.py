"""Rank & Sort loss: arXiv 2107.11669, with its negatives in buckets as in arXiv 2407.14204.

Shapes: N images, R anchors per image, Ri anchors of a level, K classes, P positives of the batch,
B = 2 P + 1 buckets. A positive is the logit of a positive anchor's own class, with index i; the
negatives are all other logits of anchors that are not ignored.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Optional

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .arguments import check_logits_and_labels, check_number, check_tensor_range, to_float
from .base import ClsLoss, split_levels
from .per_anchor import keep_for_derivatives
from .targets import DenseTargets


class RankSortLoss(ClsLoss):
    """Ranks positives above negatives, and sorts the positives by the IoU of their predictions.

    The sum of ranking and sorting error, averaged over the positives i of a batch, eq. 7 and 8 of
    arXiv 2107.11669. With y_j the IoU of positive j, and with
    h_ij = clamp((x_j - x_i) / (2 delta) + 1/2, 0, 1), the degree to which j is ranked above i:

    - ranking error: f_i / (r_i + f_i) with f_i the sum of h_ij over negatives, and r_i the sum over
      positives, i itself included;
    - sorting error: the mean of 1 - y_j over positives, weighted by h_ij, minus the same mean over
      those with y_j >= y_i, which belong above i.

    The gradient is not the derivative, which would vanish outside the ramp of h. It is the
    error-driven "identity update" of eq. 9: each positive is pulled up by its two errors, and other
    logits are pushed down by the same total. The ranking error is distributed over the negatives,
    the sorting error over the positives with a lower IoU, both in proportion to h_ij. There is no
    second derivative.

    All images of this process are ranked together, over all levels and classes. The loss of an
    image is N times its share of the mean. No parameter balances classes against background, or
    this loss against the box loss (see `scales_box_loss`).

    Args:
        delta: half the width of the ramp of h, in logits, finite and >= 0; 0 is a step, with
            h = 1 for equal logits.
    """

    needs = frozenset({"iou"})
    self_normalized = True
    scales_box_loss = True

    def __init__(self, *, delta: float = 0.5) -> None:
        super().__init__()
        check_number("delta", delta, "[0, inf)")
        self.delta = delta

    def extra_repr(self) -> str:
        return f"delta={self.delta}"

    def forward(self, logits: Sequence[Tensor], targets: DenseTargets) -> Tensor:
        self.check_targets(targets)
        assert targets.iou is not None
        for x, labels, _ in split_levels(logits, targets):
            check_logits_and_labels(x, labels, targets.num_classes)
        iou = targets.iou[targets.pos_idxs]
        check_tensor_range("iou", iou, 0, 1)
        values: Tensor = _RankSort.apply(
            self.delta, targets.gt_labels, iou, *targets.pos_idxs, *logits
        )[0]
        return values


class _RankSort(torch.autograd.Function):
    """(N,) values of `RankSortLoss`, and the contents of the buckets for its backward.

    Inputs: delta; labels (N, R); IoU, image and anchor of each positive, (P,) each; logits
    (N, Ri, K) of each level, which alone have a gradient.
    """

    @staticmethod
    def forward(
        delta: float, labels: Tensor, iou: Tensor, images: Tensor, anchors: Tensor, *levels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        pos_logits = _gather_own(levels, labels)[images, anchors]
        counts, offsets = _sum_in_buckets(None, levels, labels, _make_edges(pos_logits, delta))
        ranking = _Ranking.build(pos_logits, iou, counts, offsets, delta)
        per_positive = ranking.weight * (ranking.rank_error + ranking.sort_error)
        values = pos_logits.new_zeros(len(labels)).index_add(0, images, per_positive)
        # With delta = 0 or without positives, a NaN would not show in the errors; keep it visible.
        values = len(labels) * values + 0 * (offsets.sum() + pos_logits.sum())
        return values.to(_get_dtype(levels)), counts, offsets

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.delta, *tensors = inputs
        _, counts, offsets = output
        ctx.mark_non_differentiable(counts, offsets)
        keep_for_derivatives(ctx, counts, offsets, *tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Optional[Tensor], ...]:
        counts, offsets, labels, iou, images, anchors, *levels = ctx.saved_tensors
        pos_logits = _gather_own(levels, labels)[images, anchors]
        ranking = _Ranking.build(pos_logits, iou, counts, offsets, ctx.delta)
        weight = len(labels) * ranking.weight * grad.double()[images]
        own = pos_logits.new_zeros(labels.shape)
        own = own.index_put((images, anchors), ranking.update_positives(weight))
        grads = _spread(levels, labels, ranking.edges, *ranking.update_negatives(weight), own)
        return (None, None, None, None, None, *grads)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, None, None]:
        counts, offsets, labels, iou, images, anchors, *levels = ctx.saved_tensors
        pos_logits = _gather_own(levels, labels)[images, anchors]
        ranking = _Ranking.build(pos_logits, iou, counts, offsets, ctx.delta)
        # None for levels without a tangent.
        of_levels = [
            torch.zeros_like(x) if tangent is None else tangent
            for x, tangent in zip(levels, tangents[5:])
        ]
        of_positives = _gather_own(of_levels, labels)[images, anchors]
        of_buckets = _sum_in_buckets(of_levels, levels, labels, ranking.edges)
        per_positive = ranking.weight * ranking.apply_update(of_positives, *of_buckets)
        tangent = len(labels) * per_positive.new_zeros(len(labels)).index_add(
            0, images, per_positive
        )
        return tangent.to(_get_dtype(levels)), None, None


@dataclass(frozen=True)
class _Ranking:
    """The positives ranked against each other and the buckets of negatives, in float64.

    The edges of the buckets are x_i - delta and x_i + delta of all positives i. So within a bucket
    h_ij is linear in x_j for every i, and its sum follows from the number of negatives and the sum
    of their offsets from the lower edge. (The buckets of arXiv 2407.14204 end at x_i and are
    represented by their mean logit, which is exact for delta = 0 only.)

    Attributes:
        edges: (B - 1,) ascending, in logits.
        base: (P, B) h at the lower edge of each bucket.
        slope: (P, B) slope of h within each bucket, per logit.
        rank: (P,) r_i + f_i, at least 1/2.
        rank_error, sort_error: (P,) in [0, 1].
        sort_shares: (P, P) share of positive j in the sorting error of i; rows sum to 1, or to 0
            where there is no such error.
        weight: () 1 / P, or 1 without positives.
    """

    edges: Tensor
    base: Tensor
    slope: Tensor
    rank: Tensor
    rank_error: Tensor
    sort_error: Tensor
    sort_shares: Tensor
    weight: Tensor

    @classmethod
    def build(
        cls, pos_logits: Tensor, iou: Tensor, counts: Tensor, offsets: Tensor, delta: float
    ) -> "_Ranking":
        """Rank (P,) logits with their (P,) IoU among buckets with (B,) counts and offsets."""
        edges = _make_edges(pos_logits, delta)
        base, slope = _compare_with_buckets(pos_logits, edges, delta)
        above = _ramp(pos_logits - pos_logits[:, None], delta)
        num_false = base @ counts + slope @ offsets
        pos_rank = above.sum(dim=1)
        rank = pos_rank + num_false

        iou = iou.double()
        belongs_above = iou >= iou[:, None]
        sorted_above = above * belongs_above
        missorted = above * ~belongs_above
        # The difference of the two means, as a sum of positive terms: it cannot cancel.
        mean_iou = (sorted_above @ iou) / sorted_above.sum(dim=1)
        sort_error = (missorted * (mean_iou[:, None] - iou)).sum(dim=1) / pos_rank
        total = missorted.sum(dim=1, keepdim=True)
        return cls(
            edges=edges,
            base=base,
            slope=slope,
            rank=rank,
            rank_error=num_false / rank,
            sort_error=sort_error,
            sort_shares=missorted / total.clamp(min=torch.finfo(total.dtype).tiny),
            # Counted on the device: for fake tensors P is unknown, and comparing it with 0 raises.
            weight=1 / torch.ones_like(iou).sum().clamp(min=1),
        )

    def update_positives(self, weight: Tensor) -> Tensor:
        """(P,) gradient of the (P,)-weighted sum of errors with respect to the positives."""
        pushed = (weight * self.sort_error) @ self.sort_shares
        return pushed - weight * (self.rank_error + self.sort_error)

    def update_negatives(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The same with respect to negatives: (B,) at the lower edges, and (B,) slopes."""
        # The share of negative j in a ranking error f_i / rank_i is h_ij / f_i.
        per_rank = weight / self.rank
        return per_rank @ self.base, per_rank @ self.slope

    def apply_update(self, of_positives: Tensor, at_edges: Tensor, offsets: Tensor) -> Tensor:
        """(P,) products of each positive's update with a tangent; adjoint of the two above.

        Args:
            of_positives: (P,) tangent.
            at_edges, offsets: (B,) sums over the negatives of a bucket: of the tangent, and of the
                tangent times the offset.
        """
        ranked = (self.base @ at_edges + self.slope @ offsets) / self.rank
        pushed = self.sort_error * (self.sort_shares @ of_positives)
        return ranked + pushed - (self.rank_error + self.sort_error) * of_positives


def _ramp(x: Tensor, delta: float) -> Tensor:
    """H(x) of RS loss: from 0 at -delta to 1 at delta; for delta = 0 a step that is 1 at 0."""
    if delta == 0:
        return (x >= 0).to(x.dtype)
    return (x / (2 * delta) + 0.5).clamp(0, 1)


def _make_edges(pos_logits: Tensor, delta: float) -> Tensor:
    """(2 P,) ends of the ramps of all positives, ascending."""
    return torch.cat([pos_logits - delta, pos_logits + delta]).sort().values


def _compare_with_buckets(pos_logits: Tensor, edges: Tensor, delta: float) -> tuple[Tensor, Tensor]:
    """(P, B) h at the lower edges of the buckets, and its slopes within them."""
    infinity = edges.new_full((1,), torch.inf)
    lower = torch.cat([-infinity, edges])
    upper = torch.cat([edges, infinity])
    base = _ramp(lower - pos_logits[:, None], delta)
    if delta == 0:
        return base, torch.zeros_like(base)
    # Compared with the very sums that made the edges, so that rounding does not matter.
    is_after_start = pos_logits[:, None] - delta <= lower
    is_before_end = upper <= pos_logits[:, None] + delta
    return base, (is_after_start & is_before_end).to(base.dtype) / (2 * delta)


def _gather_own(levels: Sequence[Tensor], labels: Tensor) -> Tensor:
    """(N, R) float64 logit of each anchor's own class; of any class where it has none."""
    sizes = [x.shape[1] for x in levels]
    own = []
    for x, labels_of_level in zip(levels, labels.split(sizes, dim=1)):
        class_idxs = labels_of_level.clamp(0, x.shape[-1] - 1).unsqueeze(-1)
        own.append(x.gather(-1, class_idxs).squeeze(-1).double())
    return torch.cat(own, dim=1)


def _sum_in_buckets(
    values: Optional[Sequence[Tensor]], levels: Sequence[Tensor], labels: Tensor, edges: Tensor
) -> tuple[Tensor, Tensor]:
    """Sums over the negatives in each bucket: of values, and of values times offset.

    Args:
        values: per level (N, Ri, K); None for 1.
        levels: logits per level (N, Ri, K).
        labels: (N, R).
        edges: (B - 1,).

    Returns:
        (B,) float64 each. An offset is the distance to the lower edge; in the lowest bucket, which
        has none, to 0.
    """
    # A column per class: on a GPU, many threads that add to one number wait for each other. The
    # first row takes the logits that are not negatives.
    shape = (edges.numel() + 2, levels[0].shape[-1])
    sums = edges.new_zeros(shape)
    offsets = edges.new_zeros(shape)
    lower = _prepend_zeros(2, edges)
    for level, image, x, labels_of_image in _split_images(levels, labels):
        buckets, _ = _find_buckets(x, labels_of_image, edges)
        value = edges.new_ones(()).expand_as(x)
        offset = x - lower[buckets]  # float64, as the edges are
        if values is not None:
            value = values[level][image].double()
            offset = offset * value
        sums.scatter_add_(0, buckets, value)
        offsets.scatter_add_(0, buckets, offset)
    return sums[1:].sum(dim=1), offsets[1:].sum(dim=1)


def _spread(
    levels: Sequence[Tensor],
    labels: Tensor,
    edges: Tensor,
    at_edges: Tensor,
    slopes: Tensor,
    own: Tensor,
) -> list[Tensor]:
    """Gradient of the logits of each level.

    Args:
        levels: logits per level (N, Ri, K).
        labels: (N, R).
        edges: (B - 1,).
        at_edges, slopes: (B,) gradient of negatives at the lower edge of their bucket, and its
            slope, per logit.
        own: (N, R) gradient of the positives.
    """
    grads = [torch.zeros_like(x) for x in levels]
    own_of_level = own.split([x.shape[1] for x in levels], dim=1)
    # The first bucket is that of logits that are not negatives.
    lower = _prepend_zeros(2, edges)
    at_edges = _prepend_zeros(1, at_edges)
    slopes = _prepend_zeros(1, slopes)
    for level, image, x, labels_of_image in _split_images(levels, labels):
        buckets, is_own = _find_buckets(x, labels_of_image, edges)
        grad = x - lower[buckets]
        grad *= slopes[buckets]
        grad += at_edges[buckets]
        grad = torch.where(is_own, own_of_level[level][image][:, None], grad)
        grads[level][image] = grad.masked_fill_((labels_of_image < 0)[:, None], 0.0)
    return grads


def _split_images(
    levels: Sequence[Tensor], labels: Tensor
) -> Iterator[tuple[int, int, Tensor, Tensor]]:
    """Index of level and image, logits (Ri, K) and labels (Ri,) of each image on each level.

    One by one, so that temporary tensors are small beside the logits of a batch.
    """
    labels_of_levels = labels.split([x.shape[1] for x in levels], dim=1)
    for level, (x, labels_of_level) in enumerate(zip(levels, labels_of_levels)):
        for image in range(len(x)):
            yield level, image, to_float(x[image]), labels_of_level[image]


def _find_buckets(x: Tensor, labels: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
    """Bucket of each negative, from 1 (0 for other logits), and which logits are of own classes.

    Args:
        x: (Ri, K), float32 or float64.
        labels: (Ri,).
        edges: (B - 1,) float64.

    Returns:
        (Ri, K) int64 in 0..B and (Ri, K) bool.
    """
    # Rounded up to the logits' dtype, which leaves every logit on the same side of every edge.
    rounded = edges.to(x.dtype)
    above = torch.nextafter(rounded, torch.full_like(rounded, torch.inf))
    rounded = torch.where(rounded.double() < edges, above, rounded)
    buckets = torch.bucketize(x.contiguous(), rounded, right=True, out_int32=True)
    is_own = torch.arange(x.shape[1], device=x.device) == labels[:, None]
    is_negative = (labels >= 0)[:, None] & ~is_own
    return torch.where(is_negative, buckets + 1, 0).long(), is_own


def _prepend_zeros(number: int, x: Tensor) -> Tensor:
    return torch.cat([x.new_zeros(number), x])


def _get_dtype(levels: Sequence[Tensor]) -> torch.dtype:
    return torch.promote_types(levels[0].dtype, torch.float32)
