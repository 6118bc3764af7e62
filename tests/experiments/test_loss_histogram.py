"""The cumulative loss of a histogram: that of sorted losses, within the error it states."""

import math

import pytest
import torch

from focal_det.experiments.loss_histogram import LossHistogram


def fill(losses, num_parts=1):
    histogram = LossHistogram()
    for part in losses.chunk(num_parts):
        histogram.add(part)
    return histogram


def make_losses(kind):
    x = torch.randn(20_000, dtype=torch.float64)
    return {
        "normal": x.abs(),
        "log-normal": (4 * x).exp(),
        "equal": torch.full_like(x, 0.7),
        "tiny": x.abs() * 1e-30,
    }[kind]


def share_by_sorting(losses, fraction):
    ordered = losses.sort(descending=True).values
    return float(ordered[: round(fraction * len(losses))].sum() / losses.sum())


@pytest.mark.parametrize("kind", ["normal", "log-normal", "equal", "tiny"])
def test_curve_is_that_of_sorted_losses(kind):
    losses = make_losses(kind)
    histogram = fill(losses)
    ordered = (
        torch.cat([torch.zeros(1, dtype=torch.float64), losses.sort().values.cumsum(0)])
        / losses.sum()
    )
    fractions, shares = histogram.compute_curve()
    assert fractions[0] == shares[0] == 0 and fractions[-1] == 1 and shares[-1] == pytest.approx(1)
    exact = ordered[(fractions * len(losses)).round().long()]
    torch.testing.assert_close(shares, exact, rtol=0, atol=1e-9)  # at its points
    for fraction in (0.01, 0.2, 0.5):
        found = histogram.compute_share_of_hardest(fraction)
        assert (
            abs(found - share_by_sorting(losses, fraction)) <= histogram.compute_max_error() + 1e-9
        )
    assert histogram.compute_max_error() < 0.01


def test_worst_losses_reach_the_stated_error():
    """Half of the losses at either end of one bin."""
    low, high = 2.0**-1 * 1.0000001, 2.0 ** (-1 + 1 / 32) * 0.9999999
    losses = torch.tensor([low] * 500 + [high] * 500, dtype=torch.float64)
    histogram = fill(losses)
    assert int((histogram.counts > 0).sum()) == 1
    gap = abs(histogram.compute_share_of_hardest(0.5) - share_by_sorting(losses, 0.5))
    assert gap == pytest.approx(histogram.compute_max_error(), rel=0.05)


def test_parts_make_the_whole_in_the_same_memory():
    losses = make_losses("log-normal")
    whole, parts = fill(losses), fill(losses, num_parts=7)
    assert torch.equal(whole.counts, parts.counts) and whole.count == parts.count == len(losses)
    torch.testing.assert_close(whole.sums, parts.sums)
    assert whole.sums.shape == LossHistogram().sums.shape


def test_zeros_and_nothing_have_curves():
    zeros = fill(torch.zeros(10))
    assert (
        zeros.compute_share_of_hardest(0.2) == pytest.approx(0.2) and zeros.compute_max_error() == 0
    )
    half = fill(torch.tensor([0.0] * 5 + [1.0] * 5))
    assert half.compute_share_of_hardest(0.5) == pytest.approx(1)
    nothing = LossHistogram()
    assert nothing.count == 0 and math.isnan(nothing.compute_share_of_hardest(0.01))


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -1.0])
def test_wrong_losses_are_refused(wrong):
    with pytest.raises(ValueError, match="negative or not finite"):
        LossHistogram().add(torch.tensor([1.0, wrong]))
