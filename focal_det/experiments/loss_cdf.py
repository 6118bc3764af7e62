"""How much of the loss the hard anchors carry: the normalized cumulative loss, figure 4 of arXiv 1708.02002.

The losses of all anchors, sorted from low to high and summed, normalized to 1, for positives and negatives apart. Of millions of
anchors only a histogram is kept: the number of losses and their sum in each of its bins, which are 1/32 of an octave wide.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

SIDES = ("positive", "negative")
_BINS_PER_OCTAVE = 32
_MIN_EXPONENT, _MAX_EXPONENT = (
    -149,
    20,
)  # of the smallest float32, and more than a loss in nats can be
_NUM_BINS = (_MAX_EXPONENT - _MIN_EXPONENT) * _BINS_PER_OCTAVE + 1  # the first is for zeros


class LossHistogram:
    """Number and sum of the losses that were added, by size; the memory does not grow with their number."""

    def __init__(self) -> None:
        self.counts = torch.zeros(_NUM_BINS, dtype=torch.float64)
        self.sums = torch.zeros(_NUM_BINS, dtype=torch.float64)

    def add(self, losses: Tensor) -> None:
        """Add (...) finite losses in nats, >= 0.

        Raises:
            ValueError: a loss that is negative or not finite.
        """
        losses = losses.detach().flatten().double().cpu()
        if losses.numel() and not (losses.min() >= 0 and losses.max() < math.inf):
            raise ValueError(
                "a loss is negative or not finite, so its share of the sum means nothing"
            )
        bins = ((losses.log2() - _MIN_EXPONENT) * _BINS_PER_OCTAVE).floor().clamp(
            0, _NUM_BINS - 2
        ).long() + 1
        bins[losses == 0] = 0
        self.counts += torch.bincount(bins, minlength=_NUM_BINS)
        self.sums += torch.bincount(bins, weights=losses, minlength=_NUM_BINS)

    @property
    def count(self) -> int:
        return int(self.counts.sum())

    def compute_curve(self) -> tuple[Tensor, Tensor]:
        """Fraction of the losses from low to high, and their share of the sum: (B,) each, from 0 to 1, exact at these points.

        Without losses, or if all are zero, the shares are those of equal losses.
        """
        used = self.counts > 0
        zero = torch.zeros(1, dtype=torch.float64)
        fractions = torch.cat([zero, self.counts[used].cumsum(0)]) / max(self.count, 1)
        total = self.sums.sum()
        shares = torch.cat([zero, self.sums[used].cumsum(0)]) / total if total > 0 else fractions
        return fractions, shares

    def compute_share_of_hardest(self, fraction: float) -> float:
        """Share of the sum, in [0, 1], that the highest `fraction` of the losses carries; NaN without losses."""
        fractions, shares = self.compute_curve()
        if self.count == 0:
            return math.nan
        x = 1 - fraction
        right = int(torch.searchsorted(fractions, x).clamp(1, len(fractions) - 1))
        x0, x1, y0, y1 = (
            float(v) for v in (*fractions[right - 1 : right + 1], *shares[right - 1 : right + 1])
        )
        return 1 - (y0 + (y1 - y0) * (x - x0) / (x1 - x0))

    def compute_max_error(self) -> float:
        """What the curve can be off between its points: n losses from a to b are n (b - a) / 4 from a line at most."""
        total = float(self.sums.sum())
        exponents = torch.arange(_NUM_BINS, dtype=torch.float64) / _BINS_PER_OCTAVE + _MIN_EXPONENT
        widths = 2**exponents - 2 ** (exponents - 1 / _BINS_PER_OCTAVE)
        return float((self.counts * widths)[1:].max()) / (4 * total) if total > 0 else 0.0


def summarize(histograms: Mapping[str, Mapping[str, LossHistogram]]) -> list[dict[str, Any]]:
    """Figures for json.

    Args:
        histograms: by curve and then by side (`SIDES`).
    """
    rows = []
    for name, sides in histograms.items():
        for side, histogram in sides.items():
            fractions, shares = histogram.compute_curve()
            step = max(1, len(fractions) // 400)
            points = sorted({*range(0, len(fractions), step), len(fractions) - 1})
            rows.append(
                {
                    "curve": name,
                    "side": side,
                    "anchors": histogram.count,
                    "share_of_hardest_1_percent": histogram.compute_share_of_hardest(0.01),
                    "share_of_hardest_20_percent": histogram.compute_share_of_hardest(0.2),
                    "max_error": histogram.compute_max_error(),
                    "fractions": fractions[points].tolist(),
                    "shares": shares[points].tolist(),
                }
            )
    return rows
