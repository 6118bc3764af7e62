"""Weights and priors per class: the promised mean and range, and a picture that can be read."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from focal_det.imbalance.class_weights import (
    WEIGHT_METHODS,
    compute_class_alphas,
    compute_class_priors,
    count_objects,
)
from tests.data.make_data import load_records

COUNTS = st.lists(st.integers(0, 10) | st.integers(0, 10**7), min_size=1, max_size=30).map(np.array)


@given(
    COUNTS,
    st.sampled_from(WEIGHT_METHODS),
    st.floats(0.001, 0.99),
    st.floats(0.001, 0.999),
    st.floats(0, 0.99999),
)
@settings(max_examples=300, deadline=None)
def test_mean_range_and_order_hold_for_all_counts(counts, method, mean, max_alpha, beta):
    assume(counts.any() and mean <= max_alpha)
    alphas = compute_class_alphas(counts, method=method, mean=mean, max_alpha=max_alpha, beta=beta)
    assert (counts * alphas).sum() / counts.sum() == pytest.approx(mean, rel=1e-9)
    assert (alphas > 0).all() and (alphas <= max_alpha).all()
    by_count = alphas[np.argsort(np.maximum(counts, 1), kind="stable")]
    assert (np.diff(by_count) <= 0).all()


@pytest.mark.parametrize(
    ("method", "want"),
    [
        # Both classes have the same sum n alpha, half of 0.25 * 125.
        ("inverse", [0.15625, 0.625]),
        # scale = 0.25 * 125 / (100 / 10 + 25 / 5)
        ("sqrt", [0.2083333, 0.4166667]),
        # E = (1 - 0.9^100) / 0.1 = 9.999734 and 9.282102;
        # scale = 31.25 / (100 / 9.999734 + 25 / 9.282102) = 2.461866
        ("effective", [0.246193, 0.265228]),
    ],
)
def test_values_by_hand(method, want):
    alphas = compute_class_alphas(np.array([100, 25]), method=method, mean=0.25, beta=0.9)
    assert alphas == pytest.approx(want, abs=1e-6)


def test_what_is_cut_off_goes_to_the_other_classes():
    # Uncut, 0.0926, 0.926 and 8.33. Two cut to 0.5 leave 25 - 0.5 * 10 = 20 for the 90 objects of
    # the first.
    alphas = compute_class_alphas(np.array([90, 9, 1]), method="inverse", mean=0.25, max_alpha=0.5)
    assert alphas == pytest.approx([20 / 90, 0.5, 0.5])


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_a_class_without_objects_counts_as_one_object(method):
    alphas = compute_class_alphas(np.array([50, 0, 1, 4]), method=method, mean=0.1)
    assert alphas[1] == alphas[2]
    others = compute_class_alphas(np.array([50, 1, 4]), method=method, mean=0.1)
    assert alphas[[0, 2, 3]] == pytest.approx(others)


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_classes_of_the_same_size_get_the_scalar_alpha(method):
    assert compute_class_alphas(np.array([7, 7, 7]), method=method, mean=0.25) == pytest.approx(
        [0.25] * 3
    )
    assert compute_class_alphas(
        np.array([9, 7, 0]), method=method, mean=0.4, max_alpha=0.4
    ) == pytest.approx([0.4] * 3)


def test_beta_leads_from_no_weighting_to_inverse_frequency():
    counts = np.array([300, 40, 9])
    none, inverse = (
        compute_class_alphas(counts, method="effective", mean=0.1, beta=b) for b in (0.0, 1 - 1e-7)
    )
    assert none == pytest.approx([0.1] * 3)
    assert inverse == pytest.approx(
        compute_class_alphas(counts, method="inverse", mean=0.1), rel=1e-4
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"method": "squared"},
            r"Unknown method \(--method\) 'squared'.*Known: effective, inverse, sqrt",
        ),
        (
            {"mean": -1},
            r"scalar alpha \(FOCAL_LOSS_ALPHA\) must be in \(0, 0\.95\], got -1",
        ),
        ({"mean": 0.0}, r"FOCAL_LOSS_ALPHA\) must be in \(0, 0\.95\], got 0"),
        (
            {"mean": 0.3, "max_alpha": 0.2},
            r"FOCAL_LOSS_ALPHA\) must be in \(0, 0\.2\], got 0\.3.*--max-alpha",
        ),
        ({"max_alpha": 1.0}, r"max_alpha \(--max-alpha\) must be in \(0, 1\), got 1\.0"),
        ({"beta": 1.0}, r"beta \(--beta\) must be in \[0, 1\), got 1\.0"),
        (
            {"counts": np.array([0, 0])},
            r"counts must be >= 0 with at least one object in all, got \[0, 0\]",
        ),
        ({"counts": np.array([3, -1])}, r"counts must be >= 0"),
    ],
)
def test_a_value_out_of_range_is_named(changes, message):
    with pytest.raises(ValueError, match=message):
        compute_class_alphas(
            **{"counts": np.array([3, 1]), "method": "sqrt", "mean": 0.25, **changes}
        )


@given(st.lists(st.integers(0, 5000), min_size=1, max_size=9).map(np.array), st.integers(1, 10**9))
def test_priors_are_probabilities_and_positives_per_anchor(positives, others):
    num_anchors = int(positives.sum()) + others
    priors = compute_class_priors(positives, num_anchors)
    assert (priors > 0).all() and (priors < 1).all()
    measured = (positives > 0) & (positives / num_anchors <= 0.999)
    assert priors[measured] == pytest.approx(positives[measured] / num_anchors)


def test_a_class_without_positives_gets_the_prior_of_one():
    assert compute_class_priors(np.array([30, 0]), 1000).tolist() == [0.03, 0.001]


def test_counting_skips_crowds_and_changes_no_record(tmp_path):
    records = load_records(tmp_path)
    records[1]["annotations"][0]["iscrowd"] = 1
    before = str(records)
    assert count_objects(records, 2).tolist() == [2, 1]
    assert str(records) == before


def test_a_class_id_without_an_output_is_named(tmp_path):
    records = load_records(tmp_path)
    with pytest.raises(
        ValueError,
        match=r"0\.png has an object of class id 1, but NUM_CLASSES is 1",
    ):
        count_objects(records, 1)
