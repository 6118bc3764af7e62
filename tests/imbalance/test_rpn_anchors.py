"""Anchors of an RPN: the labels that it trains on, by class, and the boxes they reach."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.modeling import build_model

from focal_det.imbalance.anchors import build_anchor_setup, label_record, measure_anchors
from tests.data.make_data import load_records
from tests.modeling.two_stage import C4, FASTER, make_two_stage_cfg

SMALL = {
    "MODEL.ROI_HEADS.NUM_CLASSES": 2,
    "INPUT.MIN_SIZE_TRAIN": (160,),
    "INPUT.RANDOM_FLIP": "none",
}


def label_as_the_model(cfg, record):
    """(R,) labels of Detectron2 before sampling: -1 ignored, 0 background, 1 object."""
    model = build_model(cfg).train()
    rpn = model.proposal_generator
    rpn._subsample_labels = lambda labels: labels
    inputs = DatasetMapper(cfg, True)(record)
    images = model.preprocess_image([inputs])
    features = model.backbone(images.tensor)
    anchors = rpn.anchor_generator([features[x] for x in rpn.in_features])
    (labels,), _ = rpn.label_and_sample_anchors(anchors, [inputs["instances"]])
    return labels


@pytest.mark.parametrize("is_ours", [True, False])
@pytest.mark.parametrize("boundary", [-1, 0, 20])
@pytest.mark.parametrize("config_file", [FASTER, C4])
def test_labels_are_those_that_the_rpn_trains_on(config_file, boundary, is_ours, tmp_path):
    keys = {**SMALL, "MODEL.RPN.BOUNDARY_THRESH": boundary}
    cfg = make_two_stage_cfg(config_file, keys, is_ours=is_ours)
    setup = build_anchor_setup(cfg)
    for record in load_records(tmp_path):
        want = label_as_the_model(cfg, record)
        got = label_record(record, setup).labels
        assert len(got) == len(want)
        assert torch.equal(got == -1, want == -1)
        assert torch.equal(got == 2, want == 0)
        assert torch.equal((got >= 0) & (got < 2), want == 1)


def test_positives_of_an_rpn_are_counted_by_class(tmp_path):
    records = load_records(tmp_path)
    cfg = make_two_stage_cfg(FASTER, SMALL)
    fit = measure_anchors(records, build_anchor_setup(cfg))
    labels = [label_as_the_model(cfg, x) for x in records]
    assert fit.positives_per_image.tolist() == [int((x == 1).sum()) for x in labels]
    assert fit.negatives_per_image.tolist() == [int((x == 0).sum()) for x in labels]
    assert fit.positives.sum() == fit.positives_per_image.sum() and fit.positives.all()
    # Circles alone: the positives of the other class are gone, and no circle's.
    for record in records:
        record["annotations"] = [x for x in record["annotations"] if x["category_id"] == 0]
    circles = measure_anchors(records, build_anchor_setup(cfg))
    assert circles.positives[1] == 0 and circles.positives[0] >= fit.positives[0]


def test_box_is_reached_at_the_iou_of_a_positive_proposal(tmp_path):
    """Of anchors a factor of 2 apart, most are below the 0.7 of the RPN itself."""
    records = load_records(tmp_path)
    fit = measure_anchors(records, build_anchor_setup(make_two_stage_cfg(FASTER, SMALL)))
    assert (fit.iou_thresh, fit.positive_thresh) == (0.5, 0.7)
    assert fit.score == np.mean(fit.best_iou >= 0.5) > np.mean(fit.best_iou >= 0.7)
    other = {**SMALL, "MODEL.ROI_HEADS.IOU_THRESHOLDS": [0.9]}
    fit = measure_anchors(records, build_anchor_setup(make_two_stage_cfg(FASTER, other)))
    assert fit.iou_thresh == 0.7


def test_detector_without_known_anchors_is_named():
    cfg = make_two_stage_cfg(FASTER, {"MODEL.PROPOSAL_GENERATOR.NAME": "PrecomputedProposals"})
    with pytest.raises(ValueError, match="GeneralizedRCNN: anchors are known of RetinaNets and"):
        build_anchor_setup(cfg)
