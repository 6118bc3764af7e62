"""Records of runs: what is read from the lines of metrics.json."""

import math

from focal_det.experiments.records import get_history


def test_history_has_the_ap_at_each_evaluation():
    metrics = [
        {"iteration": 19, "total_loss": 1.0},
        {"iteration": 49, "a/bbox/AP": math.nan, "a/bbox/AP50": math.nan, "b/bbox/AP": 7.0},
        {"iteration": 99, "total_loss": 0.5, "a/bbox/AP": 20.0, "b/bbox/AP": 8.0},
        # Detectron2 gives the evaluation after the last iteration the number of all iterations.
        {"iteration": 120, "a/bbox/AP": 30.0, "b/bbox/AP": 9.0},
    ]
    assert get_history(metrics, "a", 120) == {"50": 0.0, "100": 20.0, "120": 30.0}
    assert get_history(metrics, "b", 120) == {"50": 7.0, "100": 8.0, "120": 9.0}


def test_history_of_one_data_set_has_figures_without_its_name():
    metrics = [{"iteration": 4, "bbox/AP": 5.0}, {"iteration": 9, "loss_cls": 1.0}]
    assert get_history(metrics, "a", 10) == {"5": 5.0}
