"""Matches equal Detectron2's `pairwise_iou` matrix, in little memory and without waiting."""

import math

import pytest
import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes, pairwise_iou
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_det.experiments.timing import measure_peak_bytes
from focal_det.modeling.matching import Matches, _match_all_pairs, _match_near_pairs, match_anchors

FIELDS = ("max_iou", "matched_idxs", "is_best_of_box", "max_iou_of_box")
ODD_NUMBERS = [math.nan, math.inf, -math.inf, 1e30, -1e30, 3e18, 1e-30, -5.0, 0.0, 8.0, 20.0, 33.3]
both_ways = pytest.mark.parametrize("match", [_match_near_pairs, _match_all_pairs])


def make_retinanet_anchors(height, width):
    sizes = [[x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)] for x in (32, 64, 128, 256, 512)]
    strides = [8, 16, 32, 64, 128]
    generator = DefaultAnchorGenerator(
        sizes=sizes, aspect_ratios=[[0.5, 1.0, 2.0]], strides=strides
    )
    return Boxes.cat(
        generator([torch.empty(1, 0, math.ceil(height / x), math.ceil(width / x)) for x in strides])
    ).tensor


def make_boxes(num, height, width, mean_side=40):
    center, side = (
        torch.rand(num, 2) * torch.tensor([width, height]),
        torch.randn(num, 2).exp() * mean_side,
    )
    return torch.cat([center - side / 2, center + side / 2], dim=1)


def make_grid(size, stride):
    """Squares with corners on a grid, so that IoUs are exact and tie often."""
    x, y = torch.meshgrid(
        torch.arange(0.0, 129, stride), torch.arange(0.0, 129, stride), indexing="xy"
    )
    corner = torch.stack([x, y], dim=-1).reshape(-1, 2)
    return torch.cat([corner, corner + size], dim=1)


@pytest.fixture(scope="module")
def layouts():
    generator = torch.Generator().manual_seed(0)
    real = make_retinanet_anchors(128, 160)
    odd = torch.tensor(ODD_NUMBERS)[torch.randint(len(ODD_NUMBERS), (150, 4), generator=generator)]
    return {
        "RetinaNet": real,
        "RetinaNet, shuffled": real[torch.randperm(len(real), generator=generator)],
        "grids": torch.cat([make_grid(16, 8), make_grid(32, 8), make_grid(64, 16)]),
        "gaps": make_grid(8, 32),
        "one": torch.tensor([[8.0, 8.0, 40.0, 40.0]]),
        "odd": torch.cat([odd, make_grid(32, 16)]),
    }


@st.composite
def lists_of_boxes(draw):
    """1 to 12 boxes: any, on a grid, and odd ones, some of them twice and some inside others."""
    number = st.floats(-60, 200, width=32)
    cell = st.integers(-2, 16)
    on_grid = st.tuples(cell, cell, st.integers(1, 12), st.integers(1, 12)).map(
        lambda x: (8.0 * x[0], 8.0 * x[1], 8.0 * (x[0] + x[2]), 8.0 * (x[1] + x[3]))
    )
    kinds = (
        on_grid
        | st.tuples(number, number, number, number)
        | st.tuples(*[st.sampled_from(ODD_NUMBERS)] * 4)
    )
    boxes = draw(st.lists(kinds, min_size=1, max_size=8))
    again = draw(
        st.lists(st.tuples(st.sampled_from(boxes), st.sampled_from([0.0, 0.0, 4.0])), max_size=4)
    )
    boxes += [(x0 + inset, y0 + inset, x1 - inset, y1 - inset) for (x0, y0, x1, y1), inset in again]
    return torch.tensor(draw(st.permutations(boxes)), dtype=torch.float32)


def read_matrix(anchors, boxes):
    """The definition. Two areas of inf, a NaN that Detectron2 refuses, overlap nothing here."""
    iou = pairwise_iou(Boxes(boxes), Boxes(anchors)).nan_to_num(nan=0.0)
    max_iou_of_box = iou.amax(dim=1)
    reachable = max_iou_of_box > 0
    if not reachable.any():
        nothing = torch.zeros(len(anchors))
        return Matches(nothing, nothing.long(), nothing.bool(), max_iou_of_box)
    iou, kept_idxs = iou[reachable], reachable.nonzero().squeeze(1)
    max_iou, matched_idxs = iou.max(dim=0)
    is_best_of_box = (iou == iou.amax(dim=1, keepdim=True)).any(dim=0)
    return Matches(max_iou, kept_idxs[matched_idxs], is_best_of_box, max_iou_of_box)


def assert_equal(matches, expected):
    for field in FIELDS:
        assert torch.equal(getattr(matches, field), getattr(expected, field)), field


@both_ways
@pytest.mark.parametrize(
    "layout", ["RetinaNet", "RetinaNet, shuffled", "grids", "gaps", "one", "odd"]
)
@given(boxes=lists_of_boxes())
@settings(max_examples=40, deadline=None)
def test_matches_are_those_of_the_matrix(layouts, match, layout, boxes):
    assert_equal(match(layouts[layout], boxes), read_matrix(layouts[layout], boxes))


@both_ways
@pytest.mark.parametrize("num_boxes", [1, 30, 120])
def test_matches_at_real_sizes_are_those_of_the_matrix(match, num_boxes):
    """More boxes than either way takes at a time, the last third of them copies of the first."""
    anchors, boxes = make_retinanet_anchors(800, 1088), make_boxes(num_boxes, 800, 1088)
    boxes[-(num_boxes // 3) :] = boxes[: num_boxes // 3 or 1]
    assert_equal(match(anchors, boxes), read_matrix(anchors, boxes))


@both_ways
def test_more_boxes_than_anchors(layouts, match):
    anchors, boxes = layouts["RetinaNet"], make_boxes(5000, 128, 160, mean_side=15)
    assert len(boxes) > len(anchors)
    assert_equal(match(anchors, boxes), read_matrix(anchors, boxes))


@both_ways
def test_of_equal_boxes_the_first_is_matched(layouts, match):
    first, far = (
        torch.tensor([[8.0, 8.0, 40.0, 40.0]]),
        torch.tensor([[500.0, 500.0, 600.0, 600.0]]),
    )
    matches = match(layouts["one"], torch.cat([far, first, first, first + 1]))
    assert matches.matched_idxs.tolist() == [1] and matches.max_iou.tolist() == [1]
    assert matches.without_anchor.tolist() == [True, False, False, False]


@both_ways
def test_all_anchors_that_tie_are_best_of_their_box(match):
    anchors = torch.tensor([[0.0, 0, 10, 10], [10, 0, 20, 10], [20, 0, 30, 10], [40, 0, 50, 10]])
    matches = match(anchors, torch.tensor([[5.0, 0, 15, 10]]))
    assert matches.is_best_of_box.tolist() == [True, True, False, False]


@both_ways
def test_a_box_between_anchors_has_none(match):
    anchors = torch.tensor([[0.0, 0, 10, 10], [100, 0, 110, 10]])
    matches = match(anchors, torch.tensor([[50.0, 0, 60, 10]]))
    assert matches.without_anchor.tolist() == [True] and not matches.is_best_of_box.any()


@both_ways
def test_order_of_the_anchors_does_not_matter(layouts, match):
    anchors, boxes = layouts["RetinaNet"], make_boxes(20, 128, 160)
    order = torch.randperm(len(anchors))
    matches, shuffled = match(anchors, boxes), match(anchors[order], boxes)
    for field in FIELDS[:3]:
        assert torch.equal(getattr(matches, field)[order], getattr(shuffled, field)), field


def test_peak_bytes_are_those_of_the_matrix_for_detectron2(layouts):
    anchors, boxes = layouts["RetinaNet"], make_boxes(200, 128, 160)
    assert measure_peak_bytes(lambda: pairwise_iou(Boxes(boxes), Boxes(anchors))) > 4 * len(
        boxes
    ) * len(anchors)


@pytest.mark.parametrize("match, max_megabytes", [(_match_near_pairs, 20), (_match_all_pairs, 100)])
def test_memory_does_not_grow_with_the_number_of_boxes(match, max_megabytes):
    """The matrix of the 300 boxes alone has 196 MB; a box as large as the image is in both."""
    anchors, boxes = make_retinanet_anchors(800, 1088), make_boxes(300, 800, 1088)
    boxes[0] = torch.tensor([0.0, 0, 1088, 800])
    few, many = (
        measure_peak_bytes(lambda some=some: match(anchors, some)) for some in (boxes[:60], boxes)
    )
    assert many < 1.05 * few and many < max_megabytes * 1e6


def test_off_the_cpu_no_value_is_needed(layouts):
    """Tensors of the meta device have none."""
    anchors, boxes = layouts["RetinaNet"].to("meta"), make_boxes(20, 128, 160).to("meta")
    matches = match_anchors(anchors, boxes)
    assert [getattr(matches, x).shape for x in FIELDS] == [anchors.shape[:1]] * 3 + [
        boxes.shape[:1]
    ]
    with pytest.raises((RuntimeError, NotImplementedError)):
        _match_near_pairs(anchors, boxes)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_matches_are_those_of_the_matrix(layouts):
    anchors, boxes = layouts["RetinaNet"].cuda(), make_boxes(200, 128, 160).cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        matches = match_anchors(anchors, boxes)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert_equal(matches, read_matrix(anchors, boxes))
