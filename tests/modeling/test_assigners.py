"""Labels: Detectron2's, but a box without an anchor gets none and a bad class id is refused."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances, pairwise_iou
from detectron2.utils.events import EventStorage
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_det.modeling.assigners import (
    IoUAssigner,
    check_gt_classes,
    compute_gt_labels,
    gather_boxes,
)
from focal_det.modeling.matching import _match_all_pairs
from tests.conftest import make_batch

MATCHER = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True)
UNREACHABLE = [
    [20, 20, 20, 40],
    [30, 30, 20, 20],
    [math.nan, 0, 10, 10],
    [5000, 5000, 5100, 5100],
    [0, 0, 1e30, 1e30],
]


def make_instances(boxes):
    instances = Instances((128, 128))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.arange(len(boxes)) % 5
    return instances


@pytest.fixture(scope="module")
def anchors():
    y, x = torch.meshgrid(torch.arange(16.0) * 8, torch.arange(16.0) * 8, indexing="ij")
    centers = torch.stack([x, y], dim=-1).reshape(-1, 2)
    return Boxes(
        torch.cat([torch.cat([centers - s / 2, centers + s / 2], dim=1) for s in (16, 32, 64)])
    )


def label_anchors(anchors, gt, matcher, num_classes):
    assigner = IoUAssigner(matcher=matcher, num_classes=num_classes)
    labels, matched_idxs, without_anchor = assigner.assign([anchors], gt)
    return labels, gather_boxes(gt.gt_boxes.tensor, matched_idxs), without_anchor


def label_as_detectron2(anchors, gt, matcher):
    from detectron2.modeling.meta_arch import RetinaNet

    stock = type("Stock", (), {"anchor_matcher": matcher, "num_classes": 5})()
    (labels,), (boxes,) = RetinaNet.label_anchors(stock, [anchors], [gt])
    return labels, boxes


def assert_labels_are_detectron2s(anchors, gt, matcher):
    """Of the boxes that overlap an anchor; on a CPU and as on other devices."""
    gt = gt[(pairwise_iou(gt.gt_boxes, anchors) > 0).any(dim=1)]
    want_labels, want_boxes = label_as_detectron2(anchors, gt, matcher)
    labels, boxes, without_anchor = label_anchors(anchors, gt, matcher, 5)
    assert torch.equal(labels, want_labels) and not without_anchor.any()
    pos_mask = (labels >= 0) & (labels < 5)
    assert torch.equal(boxes[pos_mask], want_boxes[pos_mask])
    if len(gt):
        matches = _match_all_pairs(anchors.tensor, gt.gt_boxes.tensor)
        assert torch.equal(compute_gt_labels(matches, gt.gt_classes, matcher, 5), want_labels)


@st.composite
def matchers(draw):
    """With any thresholds and labels that Detectron2 takes, equal thresholds included."""
    thresholds = sorted(
        draw(
            st.lists(
                st.sampled_from([1e-6, 0.1, 0.25, 0.3, 1 / 3, 0.4, 0.5, 0.7, 1.0]),
                min_size=1,
                max_size=4,
            )
        )
    )
    labels = draw(
        st.lists(
            st.sampled_from([-1, 0, 1]), min_size=len(thresholds) + 1, max_size=len(thresholds) + 1
        )
    )
    return Matcher(thresholds, labels, allow_low_quality_matches=draw(st.booleans()))


def on_grid(step):
    """Up to 8 boxes on a grid of `step` px; with 8 px, that of the anchors, many IoUs tie."""
    size = st.integers(1, 96 // step)
    xywh = st.tuples(*[st.integers(-10 // step, 140 // step)] * 2, size, size)
    box = xywh.map(lambda x: [step * v for v in (x[0], x[1], x[0] + x[2], x[1] + x[3])])
    return st.lists(box, max_size=8)


@pytest.mark.parametrize(
    "thresholds, labels",
    [
        ([0.4, 0.5], [0, -1, 1]),
        ([0.5], [0, 1]),
        ([0.3, 0.5, 0.7], [0, -1, 1, 1]),
        ([0.3, 0.5, 0.7], [-1, 0, -1, 1]),
    ],
)
@pytest.mark.parametrize("low_quality", [True, False])
@given(boxes=on_grid(1) | on_grid(8))
@settings(max_examples=25, deadline=None)
def test_labels_are_those_of_stock_retinanet(anchors, thresholds, labels, low_quality, boxes):
    matcher = Matcher(thresholds, labels, allow_low_quality_matches=low_quality)
    assert_labels_are_detectron2s(anchors, make_instances(boxes), matcher)


@given(
    matchers(),
    on_grid(8),
    st.lists(st.sampled_from(UNREACHABLE), max_size=3),
    st.randoms(use_true_random=False),
)
@settings(max_examples=150, deadline=None)
def test_labels_ignore_boxes_without_an_anchor(anchors, matcher, boxes, unreachable, random):
    assert_labels_are_detectron2s(anchors, make_instances(boxes), matcher)
    mixed = [*boxes, *unreachable]
    random.shuffle(mixed)
    gt = make_instances(mixed)
    labels, _, without_anchor = label_anchors(anchors, gt, matcher, 5)
    want_labels, _ = label_as_detectron2(anchors, gt[~without_anchor], matcher)
    assert torch.equal(labels, want_labels) and int(without_anchor.sum()) >= len(unreachable)


def test_a_low_quality_match_keeps_the_box_it_overlaps_most():
    """One anchor is the best of both boxes, at IoU 0.2 and 0.3."""
    anchor = Boxes(torch.tensor([[0.0, 0, 10, 10]]))
    for order in ([[0, 0, 10, 2], [0, 0, 10, 3]], [[0, 0, 10, 3], [0, 0, 10, 2]]):
        labels, boxes, _ = label_anchors(anchor, make_instances(order), MATCHER, 5)
        assert boxes.tolist() == [[0, 0, 10, 3]] and labels.tolist() == [order.index([0, 0, 10, 3])]


@pytest.mark.parametrize("height, label", [(3.9, 5), (4, -1), (4.9, -1), (5, 0), (10, 0)])
def test_a_threshold_belongs_to_the_band_above_it(height, label):
    matcher = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=False)
    labels, *_ = label_anchors(
        Boxes(torch.tensor([[0.0, 0, 10, 10]])), make_instances([[0, 0, 10, height]]), matcher, 5
    )
    assert labels.tolist() == [label]


def test_off_the_cpu_labels_need_no_value(anchors):
    """Tensors of the meta device have none: what waits for the device, fails."""
    gt = make_instances([[10, 10, 42, 42], [20, 20, 20, 40]]).to("meta")
    outputs = label_anchors(Boxes(anchors.tensor.to("meta")), gt, MATCHER, 5)
    assert [tuple(x.shape) for x in outputs] == [(len(anchors),), (len(anchors), 4), (2,)]


@pytest.mark.parametrize("box", UNREACHABLE)
def test_a_box_that_overlaps_no_anchor_gets_none(anchors, box):
    good = [10, 10, 42, 42]
    want, *_ = label_anchors(anchors, make_instances([good]), MATCHER, 5)
    labels, _, without_anchor = label_anchors(anchors, make_instances([good, box]), MATCHER, 5)
    assert without_anchor.tolist() == [False, True] and torch.equal(labels, want)
    labels, _, _ = label_anchors(anchors, make_instances([box]), MATCHER, 5)
    assert (labels == 5).all()


def test_such_a_box_takes_all_anchors_in_stock(anchors):
    labels, _ = label_as_detectron2(anchors, make_instances([[20, 20, 20, 40]]), MATCHER)
    assert (labels == 0).all()


def test_the_model_reports_such_a_box_and_counts_it(make_cfg, caplog):
    model = build_model(make_cfg()).train()
    (image,) = make_batch([[10, 10, 60, 60], [20, 20, 20, 40]])
    with EventStorage() as storage:
        model([{**image, "file_name": "cells/7.png"}])
        assert storage.latest()["focal_det/num_gt_boxes_without_anchor"][0] == 1
    assert "Image cells/7.png: 1 ground-truth boxes overlap no anchor" in caplog.text
    assert "[20.0, 20.0, 20.0, 40.0]" in caplog.text


def test_low_quality_matches_are_a_key(make_cfg):
    """A box below the threshold gets anchors as in Detectron2, or none as in the paper."""
    (image,) = make_batch([[40, 40, 50, 50]])
    nums_pos = {}
    for allowed in (True, False):
        model = build_model(make_cfg("MODEL.FOCAL_DET.LOW_QUALITY_MATCHES", allowed))
        anchors = model.anchor_generator(
            [torch.zeros(1, 1, size, size) for size in (16, 8, 4, 2, 1)]
        )
        (labels,), _ = model.label_anchors(anchors, [image["instances"]])
        nums_pos[allowed] = int((labels == image["instances"].gt_classes[0]).sum())
    assert nums_pos[True] > 0 and nums_pos[False] == 0


@pytest.mark.parametrize("wrong", [5, 17, -1])
def test_a_class_id_without_an_output_names_image_and_key(make_cfg, wrong):
    model = build_model(make_cfg()).train()
    (image,) = make_batch([[10, 10, 60, 60]])
    image["instances"].gt_classes[:] = wrong
    with pytest.raises(
        ValueError,
        match=f"cells/7.png has an object of class id {wrong}, "
        "but MODEL.RETINANET.NUM_CLASSES is 5",
    ):
        model([{**image, "file_name": "cells/7.png"}])


def test_no_objects_have_no_wrong_class():
    check_gt_classes(torch.zeros(0, dtype=torch.int64), 5, "a.png")


def test_an_image_without_instances_is_named(make_cfg):
    with pytest.raises(ValueError, match="Image 0 of the batch has no 'instances'"):
        build_model(make_cfg()).train()([{"image": torch.zeros(3, 64, 64)}])
