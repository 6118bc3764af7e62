"""Figures of a training set: they show what the numbers say, for any number of classes."""

from dataclasses import replace

import numpy as np
import pytest
from detectron2.structures import BoxMode
from matplotlib.colors import to_rgb

from focal_det.imbalance.anchors import build_anchor_setup, measure_anchors
from focal_det.imbalance.class_weights import WEIGHT_METHODS, ClassWeights, compute_class_alphas
from focal_det.report.anchors import make_anchor_figure
from focal_det.report.class_weights import make_class_weights_figure
from focal_det.report.style import COLORS, VERMILION, get_class_color
from tests.modeling.two_stage import FASTER, make_two_stage_cfg


def make_anchor_panels(make_cfg, *boxes):
    """The four panels for one image with boxes, circles and squares in turn."""
    setup = build_anchor_setup(
        make_cfg("INPUT.MIN_SIZE_TRAIN", (0,), "MODEL.RETINANET.NUM_CLASSES", 2)
    )
    annotations = [
        {"bbox": x, "bbox_mode": BoxMode.XYXY_ABS, "category_id": i % 2}
        for i, x in enumerate(boxes)
    ]
    record = {"file_name": "a.png", "height": 256, "width": 256, "annotations": annotations}
    fit = measure_anchors([record], setup)
    figure = make_anchor_figure({"now": fit, "other": fit}, ["circle", "square"], list("34567"))
    return figure.axes


def find_areas(axes, color):
    """Widths times heights of all bars of a colour."""
    return sum(
        x.get_width() * x.get_height()
        for x in axes.patches
        if np.allclose(x.get_facecolor()[:3], to_rgb(color))
    )


def test_lost_boxes_are_red_by_size_and_class(make_cfg):
    sizes, _, classes, _ = make_anchor_panels(make_cfg, [10, 10, 42, 42], [40, 60, 90, 100])
    assert find_areas(sizes, VERMILION) == find_areas(classes, VERMILION) == 0
    sizes, _, classes, _ = make_anchor_panels(make_cfg, [10, 10, 42, 42], [40, 60, 48, 66])
    assert find_areas(sizes, VERMILION) > 0
    assert [x.get_text() for x in classes.get_yticklabels()] == ["square (1)", "circle (1)"]
    assert [x.get_width() for x in classes.patches] == [100, 0]


def test_every_fit_has_a_line_of_its_iou(make_cfg):
    _, ious, _, levels = make_anchor_panels(make_cfg, [10, 10, 42, 42])
    labels = [x.get_text() for x in ious.get_legend().get_texts()]
    assert [x.split(":")[0] for x in labels] == ["now", "other"]
    assert [x.get_text() for x in levels.get_xticklabels()] == list("34567")


def make_weights_figure(num_classes, method="sqrt"):
    counts = (10000 * 0.93 ** np.arange(num_classes)).astype(int)
    alphas = {name: compute_class_alphas(counts, method=name, mean=0.25) for name in WEIGHT_METHODS}
    names = [f"class {i}" for i in range(num_classes)]
    weights = ClassWeights(names, counts, alphas, method, np.maximum(counts, 1) / 1e7, 0.25, 0.01)
    return make_class_weights_figure(weights, "a title"), weights


def test_classes_have_rows_until_there_are_too_many():
    figures = [make_weights_figure(x)[0] for x in (1, 20, 80, 200, 1200)]
    heights = [figure.get_size_inches()[1] * figure.dpi for figure in figures]
    # 80 rows of at least 18 pixels; without names the number of classes no longer counts.
    assert heights[0] < heights[1] < heights[2]
    assert heights[2] > 80 * 18
    assert heights[3] == heights[4] < heights[2]
    assert [x.get_text() for x in figures[1].axes[0].get_yticklabels()][-1] == "class 19"
    assert not figures[3].axes[0].texts


@pytest.mark.parametrize("method", WEIGHT_METHODS)
def test_the_written_method_is_the_thick_line(method):
    figure, weights = make_weights_figure(5, method)
    lines = [x for x in figure.axes[1].lines if x.get_color() == VERMILION]
    assert [x.get_label() for x in lines] == [f"{method} (written)"]
    np.testing.assert_array_equal(lines[0].get_xdata(), weights.alphas[method])


@pytest.mark.parametrize(
    ("changes", "labels"),
    [
        ({}, ["objects", "alpha: weight of the positives", "pi: probability at the start"]),
        ({"alphas": {}}, ["objects", "pi: probability at the start"]),
        ({"priors": None}, ["objects", "alpha: weight of the positives"]),
        ({"alphas": {}, "priors": None}, ["objects"]),
    ],
)
def test_what_the_detector_does_not_take_has_no_panel(changes, labels):
    _, weights = make_weights_figure(5)
    figure = make_class_weights_figure(replace(weights, **changes), "a title")
    assert [x.get_xlabel() for x in figure.axes] == labels


def test_shared_out_priors_are_not_called_measured():
    _, weights = make_weights_figure(5)
    for is_measured, label in ((True, "positives per anchor"), (False, "share of the objects")):
        changed = replace(weights, is_prior_measured=is_measured)
        priors = make_class_weights_figure(changed, "a title").axes[2]
        assert priors.lines[0].get_label() == label


def test_thresholds_of_an_rpn_are_both_drawn(make_cfg):
    _, ious, _, _ = make_anchor_panels(make_cfg, [10, 10, 42, 42])
    assert [x.get_xdata()[0] for x in ious.lines] == [0.5]
    setup = build_anchor_setup(make_two_stage_cfg(FASTER, {"INPUT.MIN_SIZE_TRAIN": (0,)}))
    box = {"bbox": [10, 10, 42, 42], "bbox_mode": BoxMode.XYXY_ABS, "category_id": 0}
    record = {"file_name": "a.png", "height": 256, "width": 256, "annotations": [box]}
    figure = make_anchor_figure(
        {"now": measure_anchors([record], setup)}, list("abcde"), list("23456")
    )
    assert sorted(x.get_xdata()[0] for x in figure.axes[1].lines) == [0.5, 0.7]


def test_classes_have_colors_that_repeat_after_ten():
    colors = [get_class_color(i) for i in range(20)]
    assert len(set(colors[:10])) == 10
    assert colors[10:] == colors[:10]
    assert len(set(COLORS)) == 8
