"""Gradient harmonizing mechanism: "Gradient Harmonized Single-stage Detector".

arXiv 1811.05181.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from .arguments import check_integer, check_logits_and_labels, check_number, to_float
from .base import ClsLoss, split_levels
from .per_anchor import focal_term, sum_over_classes
from .state import OptionalBuffers, is_training_step, sum_over_processes
from .targets import DenseTargets

# Rows of the buffer, enough for P2 to P9, so that its shape is the same for all pyramids.
_MAX_LEVELS = 8


def get_gradient_bins(z: Tensor, num_bins: int) -> Tensor:
    """Unit region (bin) of each gradient norm g = |p - y| = sigmoid(z), int64 in 0..num_bins - 1.

    z is the logit of the wrong answer. NaN, whose loss is NaN anyway, is put into the first region.
    """
    return (torch.sigmoid(z) * num_bins).long().clamp(0, num_bins - 1)


class GHMCLoss(OptionalBuffers, ClsLoss):
    """GHM-C: cross entropy divided by gradient density, the number of similar gradient norms.

    On each pyramid level, the norms g = |p - y| of all terms (anchors times classes, without
    ignored anchors) are counted in M unit regions. The density at g is the count of its region
    times the number of regions that have terms. The loss of a level is the sum of CE / density;
    that of the batch is the sum over the levels (at most 8).

    One density per level, and the number of regions that have terms, follow the authors' code. The
    paper has one density for all levels and multiplies by M, empty regions included: at the start,
    when nearly all terms are in two regions, the factor M alone makes its loss 2 / M of this one.

    Counts are per image and averaged over the images of all processes. Their moving average is a
    buffer with a row for each level, and starts with the first counts. (In the authors' code the
    average starts with 0, all levels update the same average one after the other, and it does not
    move in a region without terms.)

    Args:
        num_bins: M, unit regions, >= 1.
        momentum: weight of the old counts, in [0, 1).
    """

    self_normalized = True
    stateful = True
    counts: Tensor

    def __init__(self, *, num_bins: int = 30, momentum: float = 0.75) -> None:
        super().__init__()
        check_integer("num_bins", num_bins, "[1, inf)")
        check_number("momentum", momentum, "[0, 1)")
        self.num_bins = num_bins
        self.momentum = momentum
        self.register_buffer("counts", torch.zeros(_MAX_LEVELS, num_bins))

    def extra_repr(self) -> str:
        return f"num_bins={self.num_bins}, momentum={self.momentum}"

    def forward(self, logits: Sequence[Tensor], targets: DenseTargets) -> Tensor:
        density = self._compute_density(logits, targets, keep=is_training_step(self))
        # The density of a region without terms divides nothing; the clamp avoids 1 / 0.
        weights = 1 / density.clamp(min=torch.finfo(density.dtype).tiny)
        per_level = []
        for (x, labels, _), weight in zip(split_levels(logits, targets), weights):
            positive_term = partial(self._positive_term, weight)
            negative_term = partial(self._negative_term, weight)
            losses = sum_over_classes(x, labels, positive_term, negative_term)
            per_level.append(losses.sum(dim=1))
        return torch.stack(per_level).sum(dim=0)

    def _positive_term(self, weight: Tensor, x: Tensor, _: Tensor) -> Tensor:
        return self._negative_term(weight, -x)

    def _negative_term(self, weight: Tensor, z: Tensor) -> Tensor:
        """Cross entropy times the (M,) weight of its region."""
        return weight[get_gradient_bins(z.detach(), self.num_bins)] * focal_term(z, 0.0)

    @torch.no_grad()
    def _compute_density(
        self, logits: Sequence[Tensor], targets: DenseTargets, *, keep: bool
    ) -> Tensor:
        """(L, M) density of the regions of each of L levels, from the moving average of counts.

        Args:
            keep: whether to store the average in the buffer.
        """
        average, counts = self._average_counts(logits, targets)
        if keep:
            self.counts = torch.cat([average, self.counts[len(average) :]])
        return average * (counts > 0).sum(dim=1, keepdim=True)

    def _average_counts(
        self, logits: Sequence[Tensor], targets: DenseTargets
    ) -> tuple[Tensor, Tensor]:
        """(L, M) moving average of the counts per image, and (L, M) those of this batch alone."""
        num_levels = len(logits)
        if num_levels > _MAX_LEVELS:
            raise ValueError(
                f"GHMCLoss takes at most {_MAX_LEVELS} pyramid levels, got {num_levels}"
            )
        counts_per_level = [
            _count(to_float(x), labels, targets.num_classes, self.num_bins)
            for x, labels, _ in split_levels(logits, targets)
        ]
        # The number of images travels with the counts, in one collective.
        num_images = counts_per_level[0].new_full((1,), len(targets.gt_labels))
        total = sum_over_processes(torch.cat([*counts_per_level, num_images])).float()
        counts = (total[:-1] / total[-1].clamp(min=1)).view(num_levels, self.num_bins)
        before = self.counts[:num_levels]
        average = torch.where(
            before.sum(dim=1, keepdim=True) > 0,
            self.momentum * before + (1 - self.momentum) * counts,
            counts,
        )
        return average, counts

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *args: Any) -> None:
        key = f"{prefix}counts"
        if key in state_dict and state_dict[key].dim() == 1:
            # An older version had one density for all levels: the counts start anew.
            state_dict = {k: v for k, v in state_dict.items() if k != key}
        super()._load_from_state_dict(state_dict, prefix, *args)


def _count(logits: Tensor, labels: Tensor, num_classes: int, num_bins: int) -> Tensor:
    """(M,) int64 number of terms in each region, from (N, Ri, K) logits and (N, Ri) labels."""
    check_logits_and_labels(logits, labels, num_classes)
    pos_mask = ((labels >= 0) & (labels < num_classes)).unsqueeze(-1)
    class_idxs = labels.clamp(0, num_classes - 1).unsqueeze(-1)
    own = logits.gather(-1, class_idxs)
    z = logits.scatter(-1, class_idxs, torch.where(pos_mask, -own, own))
    # Ignored anchors are counted in an extra region, which is dropped; leaving them out by a mask
    # would wait for the device.
    is_ignored = (labels < 0).unsqueeze(-1)
    bins = torch.where(is_ignored, num_bins, get_gradient_bins(z, num_bins)).flatten()
    return labels.new_zeros(num_bins + 1).index_add(0, bins, bins.new_ones(1).expand_as(bins))[:-1]
