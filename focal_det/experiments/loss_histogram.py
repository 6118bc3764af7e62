"""Losses of millions of anchors as a histogram, and their normalized cumulative sum."""

import math

import torch
from torch import Tensor

_BINS_PER_OCTAVE = 32
_MIN_EXPONENT = -149  # of the smallest float32
_MAX_EXPONENT = 20  # more than a loss in nats can have
_NUM_BINS = (_MAX_EXPONENT - _MIN_EXPONENT) * _BINS_PER_OCTAVE + 1  # the first is for zeros


class LossHistogram:
    """Number and sum of losses by their size, in bins of 1/32 of an octave.

    The memory does not grow with the number of losses.
    """

    def __init__(self) -> None:
        self.counts = torch.zeros(_NUM_BINS, dtype=torch.float64)
        self.sums = torch.zeros(_NUM_BINS, dtype=torch.float64)

    def add(self, losses: Tensor) -> None:
        """Add (...) finite losses in nats, >= 0.

        Raises:
            ValueError: a loss that is negative or not finite.
        """
        losses = losses.detach().flatten().double().cpu()
        # Negated, as a NaN fails every comparison.
        if losses.numel() and not (losses.min() >= 0 and losses.max() < math.inf):
            raise ValueError(
                "a loss is negative or not finite, so its share of the sum means nothing"
            )
        positions = (losses.log2() - _MIN_EXPONENT) * _BINS_PER_OCTAVE
        bins = positions.floor().clamp(0, _NUM_BINS - 2).long() + 1
        bins[losses == 0] = 0
        self.counts += torch.bincount(bins, minlength=_NUM_BINS)
        self.sums += torch.bincount(bins, weights=losses, minlength=_NUM_BINS)

    @property
    def count(self) -> int:
        """Number of losses."""
        return int(self.counts.sum())

    def compute_curve(self) -> tuple[Tensor, Tensor]:
        """The normalized cumulative loss, exact at its points, which are the edges of the bins.

        Without losses, or if all are zero, the shares are those of equal losses.

        Returns:
            (B,) fractions of the losses at the B points, from low to high, and (B,) their shares of
            the sum; both from 0 to 1.
        """
        used = self.counts > 0
        zero = torch.zeros(1, dtype=torch.float64)
        fractions = torch.cat([zero, self.counts[used].cumsum(0)]) / max(self.count, 1)
        total = self.sums.sum()
        if total == 0:
            return fractions, fractions
        return fractions, torch.cat([zero, self.sums[used].cumsum(0)]) / total

    def compute_share_of_hardest(self, fraction: float) -> float:
        """Share of the sum that the highest `fraction` of the losses has; NaN without losses."""
        if self.count == 0:
            return math.nan
        fractions, shares = self.compute_curve()
        x = 1 - fraction
        right = int(torch.searchsorted(fractions, x).clamp(1, len(fractions) - 1))
        x0, x1 = fractions[right - 1 : right + 1].tolist()
        y0, y1 = shares[right - 1 : right + 1].tolist()
        return 1 - (y0 + (y1 - y0) * (x - x0) / (x1 - x0))

    def compute_max_error(self) -> float:
        """Largest error of a straight line between two points of the curve.

        n losses between a and b deviate from it by at most n (b - a) / 4, reached with half of them
        at each end.
        """
        total = float(self.sums.sum())
        if total == 0:
            return 0.0
        exponents = torch.arange(_NUM_BINS, dtype=torch.float64) / _BINS_PER_OCTAVE + _MIN_EXPONENT
        widths = 2**exponents - 2 ** (exponents - 1 / _BINS_PER_OCTAVE)
        return float((self.counts * widths)[1:].max()) / (4 * total)
