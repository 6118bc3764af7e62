"""dev/measure_watch.py: it measures, and checking many annotations needs little memory."""

import pytest

from tests.conftest import load_dev

script = load_dev("measure_watch")


def test_it_measures_guard_and_telemetry():
    measured = script.measure_steps(rounds=2, iterations=1)
    assert set(measured["median_ratios"]) == {"guard", "telemetry", "both"}
    assert [len(x) for x in measured["seconds_per_iteration"].values()] == [2, 2, 2]


@pytest.mark.parametrize("num_images", [300, pytest.param(100_000, marks=pytest.mark.slow)])
def test_a_check_of_many_annotations_has_bounded_memory(num_images):
    """Between 1 and 2 GB, most of it for the anchors of R50-FPN that are tried."""
    measured = script.measure_check(num_images)
    assert measured["annotations"] == 7 * num_images and measured["exit_code"] in (0, 1)
    assert measured["peak_gb"] < 3
