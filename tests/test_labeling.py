"""Labels: Detectron2's, but a box that overlaps no anchor gets none, and a class id without an output is refused."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_det.labeling import check_gt_classes, label_anchors_of_image
from tests.conftest import make_batch

MATCHER = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True)
UNREACHABLE = [[20, 20, 20, 40], [30, 30, 20, 20], [math.nan, 0, 10, 10], [5000, 5000, 5100, 5100], [0, 0, 1e30, 1e30]]


def make_instances(boxes):
    instances = Instances((128, 128))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.arange(len(boxes)) % 5
    return instances


@pytest.fixture(scope="module")
def anchors():
    y, x = torch.meshgrid(torch.arange(16.0) * 8, torch.arange(16.0) * 8, indexing="ij")
    centers = torch.stack([x, y], dim=-1).reshape(-1, 2)
    return Boxes(torch.cat([torch.cat([centers - s / 2, centers + s / 2], dim=1) for s in (16, 32, 64)]))


@given(st.lists(st.tuples(*[st.integers(-10, 140)] * 2, *[st.integers(1, 90)] * 2), max_size=8))
@settings(max_examples=40, deadline=None)
def test_labels_are_those_of_stock_retinanet(anchors, boxes):
    from detectron2.modeling.meta_arch import RetinaNet

    gt = make_instances([[x, y, x + w, y + h] for x, y, w, h in boxes])
    labels, matched, without_anchor = label_anchors_of_image(anchors, gt, MATCHER, 5)
    stock = type("Stock", (), {"anchor_matcher": MATCHER, "num_classes": 5})()
    gt = gt[~without_anchor]
    (want_labels,), (want_boxes,) = RetinaNet.label_anchors(stock, [anchors], [gt])
    assert torch.equal(labels, want_labels)
    pos_mask = (labels >= 0) & (labels < 5)
    assert torch.equal(matched[pos_mask], want_boxes[pos_mask])


@pytest.mark.parametrize("box", UNREACHABLE)
def test_a_box_that_overlaps_no_anchor_gets_none(anchors, box):
    good = [10, 10, 42, 42]
    want, *_ = label_anchors_of_image(anchors, make_instances([good]), MATCHER, 5)
    labels, _, without_anchor = label_anchors_of_image(anchors, make_instances([good, box]), MATCHER, 5)
    assert without_anchor.tolist() == [False, True] and torch.equal(labels, want)
    labels, _, _ = label_anchors_of_image(anchors, make_instances([box]), MATCHER, 5)
    assert (labels == 5).all()


def test_such_a_box_takes_all_anchors_in_stock(anchors):
    from detectron2.modeling.meta_arch import RetinaNet

    stock = type("Stock", (), {"anchor_matcher": MATCHER, "num_classes": 5})()
    (labels,), _ = RetinaNet.label_anchors(stock, [anchors], [make_instances([[20, 20, 20, 40]])])
    assert (labels == 0).all()


def test_the_model_reports_such_a_box_and_counts_it(make_cfg, caplog):
    model = build_model(make_cfg()).train()
    (image,) = make_batch([[10, 10, 60, 60], [20, 20, 20, 40]])
    with EventStorage() as storage:
        model([{**image, "file_name": "cells/7.png"}])
        assert storage.latest()["focal_det/num_gt_boxes_without_anchor"][0] == 1
    assert "Image cells/7.png: 1 ground-truth boxes overlap no anchor" in caplog.text
    assert "[20.0, 20.0, 20.0, 40.0]" in caplog.text


@pytest.mark.parametrize("wrong", [5, 17, -1])
def test_a_class_id_without_an_output_names_image_and_key(make_cfg, wrong):
    model = build_model(make_cfg()).train()
    (image,) = make_batch([[10, 10, 60, 60]])
    image["instances"].gt_classes[:] = wrong
    with pytest.raises(ValueError, match=f"cells/7.png has an object of class id {wrong}, but MODEL.RETINANET.NUM_CLASSES is 5"):
        model([{**image, "file_name": "cells/7.png"}])


def test_no_objects_have_no_wrong_class():
    check_gt_classes(torch.zeros(0, dtype=torch.int64), 5, "a.png")


def test_an_image_without_instances_is_named(make_cfg):
    with pytest.raises(ValueError, match="Image 0 of the batch has no 'instances'"):
        build_model(make_cfg()).train()([{"image": torch.zeros(3, 64, 64)}])
