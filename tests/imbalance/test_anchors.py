"""Fit of the anchors: labels as of the model, measures by hand, and better suggestions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.modeling import build_model
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, BoxMode, pairwise_iou

from focal_det.imbalance.anchors import (
    Anchors,
    build_anchor_setup,
    get_feature_sizes,
    label_record,
    measure_anchors,
)
from focal_det.imbalance.best_iou import compute_best_iou, resize_boxes
from focal_det.imbalance.suggestion import suggest_anchors
from focal_det.modeling.assigners import IoUAssigner
from tests.data.make_data import load_records


def make_record(*boxes, size=256):
    annotations = [
        {"bbox": x, "bbox_mode": BoxMode.XYXY_ABS, "category_id": i % 2}
        for i, x in enumerate(boxes)
    ]
    return {"file_name": "a.png", "height": size, "width": size, "annotations": annotations}


@pytest.fixture
def setup(make_cfg):
    """Anchors of 32 to 813 px at strides 8 to 128, in images that are not resized."""
    return build_anchor_setup(
        make_cfg("INPUT.MIN_SIZE_TRAIN", (0,), "MODEL.RETINANET.NUM_CLASSES", 2)
    )


def get_anchors(setup):
    sizes = [[x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)] for x in (32, 64, 128, 256, 512)]
    return Anchors(sizes, [0.5, 1.0, 2.0], setup.strides)


@pytest.mark.parametrize("size", [(128, 128), (1, 1), (97, 130), (160, 33), (31, 257)])
def test_feature_sizes_and_anchors_are_those_of_the_model(make_cfg, size):
    model = build_model(make_cfg()).eval()
    with torch.no_grad():
        images = model.preprocess_image([{"image": torch.zeros(3, *size)}])
        features = [model.backbone(images.tensor)[name] for name in model.head_in_features]
    sizes = get_feature_sizes(
        size, model.anchor_generator.strides, model.backbone.size_divisibility
    )
    assert sizes == [tuple(x.shape[-2:]) for x in features]
    empty = [torch.empty(1, 0, *x) for x in sizes]
    assert all(
        torch.equal(a.tensor, b.tensor)
        for a, b in zip(model.anchor_generator(empty), model.anchor_generator(features))
    )


@pytest.mark.parametrize("assigner", ["IoUAssigner", "ATSSAssigner"])
@pytest.mark.parametrize("size", [(128, 1333), (200, 150), (0, 1333)])
def test_positives_are_those_that_the_model_trains_on(make_cfg, tmp_path, size, assigner):
    records = load_records(tmp_path)
    records[0]["annotations"].append(
        {**records[0]["annotations"][0], "bbox": [60, 0, 30, 30], "iscrowd": 1}
    )
    overrides = [
        "INPUT.MIN_SIZE_TRAIN",
        (size[0],),
        "INPUT.MAX_SIZE_TRAIN",
        size[1],
        "INPUT.RANDOM_FLIP",
        "none",
        "MODEL.FOCAL_DET.ASSIGNER.NAME",
        assigner,
    ]
    cfg = make_cfg(*overrides, "MODEL.RETINANET.NUM_CLASSES", 2)
    model, mapper = build_model(cfg).train(), DatasetMapper(cfg, True)
    want, want_anchors = np.zeros(2, int), 0
    for record in records:
        inputs = mapper(record)
        features = model.backbone(model.preprocess_image([inputs]).tensor)
        anchors = model.anchor_generator([features[name] for name in model.head_in_features])
        (labels,), _ = model.label_anchors(anchors, [inputs["instances"]])
        want += np.bincount(labels[(labels >= 0) & (labels < 2)].numpy(), minlength=2)
        want_anchors += len(labels)
    fit = measure_anchors(records, build_anchor_setup(cfg))
    assert want.all() and fit.positives.tolist() == want.tolist()
    assert fit.num_anchors == want_anchors


def test_a_record_without_size_or_class_is_named(setup):
    with pytest.raises(ValueError, match=r"Image a\.png has no 'height' and 'width'"):
        measure_anchors([{"file_name": "a.png", "annotations": []}], setup)
    with pytest.raises(
        ValueError,
        match=r"Image a\.png has an object of class id 1, but NUM_CLASSES is 1",
    ):
        measure_anchors([make_record([0, 0, 9, 9], [0, 0, 20, 20])], replace(setup, num_classes=1))


def test_the_measures_are_those_of_the_matrix_of_overlaps(setup):
    boxes = torch.tensor([[10.0, 10, 42, 42], [40, 60, 48, 66], [100, 30, 220, 160]])
    fit = measure_anchors([make_record(*boxes.tolist()), make_record()], setup)
    iou = pairwise_iou(Boxes(boxes), Boxes.cat(setup.generate((256, 256)))).amax(dim=1)
    assert np.array_equal(fit.best_iou, iou.numpy()) and fit.iou_thresh == 0.5
    assert fit.is_reached.tolist() == [True, False, True] and fit.score == pytest.approx(2 / 3)
    assert fit.has_positive.all()  # by low-quality matches
    assert fit.sides.tolist() == [[32, 32], [8, 6], [120, 130]]
    assert fit.classes.tolist() == [0, 1, 0]
    assert fit.positives_per_image[1] == 0
    assert fit.positives_per_level.sum() == fit.positives.sum() == fit.positives_per_image[0]


@pytest.mark.parametrize("offset", [0.0, 0.5])
@pytest.mark.parametrize("size", [(256, 256), (97, 130), (33, 800), (1, 1)])
def test_nearest_cells_have_the_best_iou_of_all_anchors(size, offset, make_cfg):
    sizes = [[20, 33.3], [64], [100, 150], [256], [700]]
    words = ["MODEL.ANCHOR_GENERATOR.OFFSET", offset, "MODEL.ANCHOR_GENERATOR.SIZES", sizes]
    setup = build_anchor_setup(make_cfg("INPUT.MIN_SIZE_TRAIN", (0,), *words))
    rng, (height, width) = np.random.default_rng(0), size
    corners = rng.uniform(-0.2, 1.2, (300, 2, 2)) * (width, height)
    boxes = np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)
    middle = np.clip(boxes[:, :2], 0, [width, height])
    small = np.concatenate([middle, middle + rng.uniform(0.1, 30, (300, 2))], axis=1)
    on_grid = [
        [0, 0, 8, 8],
        [0, 0, width, height],
        [4, 4, 12, 12],
        [8, 8, 8.001, 9],
        [60, 0, 68, 8],
    ]
    record = make_record(*boxes.tolist(), *small.tolist(), *on_grid)
    record.update(height=height, width=width)
    record["annotations"][0]["iscrowd"] = 1
    fit = measure_anchors([record, make_record(), record], replace(setup, num_classes=2))
    found, sizes_of_images = resize_boxes([record, make_record(), record], setup.resize)
    best = compute_best_iou(found, sizes_of_images, setup)
    assert len(best) == len(fit.best_iou) > (0 if size == (1, 1) else 700)
    np.testing.assert_allclose(best.numpy(), fit.best_iou, rtol=0, atol=3e-7)
    assert (found[:, 2:] - found[:, :2]).tolist() == fit.sides.tolist()


def test_the_search_labels_no_anchors(setup, monkeypatch):
    """Labelling took a minute for 120 images, and did not end for images of thousands of boxes."""

    def fail(*args):
        raise AssertionError("the search has labelled all anchors")

    monkeypatch.setattr("focal_det.imbalance.anchors.match_anchors", fail)
    records = [make_record(*[[i, j, i + 9, j + 9] for i in range(99) for j in range(50)])]
    found = suggest_anchors(records, setup, get_anchors(setup), may_add_level=True)
    assert found.strides[0] == 4 or max(found.sizes[0]) < 32


def test_a_box_whose_anchors_others_take_has_no_positive(setup):
    matcher = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=False)
    without = replace(setup, assigner=IoUAssigner(matcher=matcher, num_classes=setup.num_classes))
    fit = measure_anchors([make_record([10, 10, 42, 42], [10, 10, 42, 42])], without)
    assert fit.has_positive.tolist() == [True, False] and fit.is_reached.all()


def test_smaller_anchors_reach_more_small_boxes(setup):
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 230, (60, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(9, 14, (60, 2))], axis=1).tolist()
    records = [make_record(*boxes[i : i + 10]) for i in range(0, 60, 10)]
    before = measure_anchors(records, setup)
    found = suggest_anchors(records, setup, get_anchors(setup), may_add_level=False)
    after = measure_anchors(records, setup.with_anchors(found))
    assert after.score > before.score + 0.01
    assert max(found.sizes[0]) < 32 and len(found.strides) == 5
    finer = suggest_anchors(records, setup, get_anchors(setup), may_add_level=True)
    assert finer.strides[0] == 4 and [len(x) for x in finer.sizes] == [3] * 6
    assert measure_anchors(records, setup.with_anchors(finer)).score > after.score


def test_fitting_anchors_stay_and_long_boxes_get_long_ones(setup):
    fitting = [make_record([16, 16, 48, 48], [64, 64, 128, 128])]
    assert suggest_anchors(fitting, setup, get_anchors(setup), may_add_level=True) is None
    assert suggest_anchors([make_record()], setup, get_anchors(setup), may_add_level=True) is None
    long = [make_record([5 + i, 100, 245, 130 + i]) for i in range(10)]
    found = suggest_anchors(long, setup, get_anchors(setup), may_add_level=False)
    assert max(found.aspect_ratios) < 0.2 and len(found.aspect_ratios) == 3


def test_labels_of_one_image_come_with_its_objects(setup):
    image = label_record(make_record([10, 10, 42, 42]), setup)
    assert len(image.objects) == len(image.best_iou) == 1
    assert len(image.labels) == sum(map(len, image.anchors))
    assert (image.labels == 0).any()
