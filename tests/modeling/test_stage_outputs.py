"""Outputs of a stage for a measurement: all boxes of training, and a model that stays as it is."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from focal_det.losses import FocalLoss
from focal_det.modeling.stage_outputs import STAGES, compute_stage_outputs
from tests.conftest import make_batch
from tests.modeling.two_stage import (
    BOX,
    C4,
    CASCADE,
    FASTER,
    MASK,
    RPN,
    WITHOUT_SAMPLING,
    build_two_stage,
)

BOXES = ([[16, 16, 52, 52]], [[30, 40, 110, 120], [5, 5, 40, 60]])
# Batch norm would compute other outputs in training.
FROZEN = {"MODEL.RESNETS.NORM": "FrozenBN"}
FOCAL = {
    **FROZEN,
    f"{RPN}.CLS_LOSS.ARGS.FocalLoss.gamma": 2.0,
    f"{BOX}.CLS_LOSS.NAME": "FocalLoss",
    f"{BOX}.PRIOR_PROB": 0.01,
}
LOSSES = {"rpn": FocalLoss(alpha=-1.0, gamma=2.0), "roi_head": FocalLoss(alpha=0.25, gamma=2.0)}


@pytest.mark.parametrize("config_file", [FASTER, C4, CASCADE], ids=["FPN", "C4", "cascade"])
def test_they_are_those_of_training_without_sampling(config_file):
    """Also where the model itself is trained on samples."""
    batch = make_batch(*BOXES)
    torch.manual_seed(0)
    with EventStorage():
        losses = build_two_stage(config_file, {**WITHOUT_SAMPLING, **FOCAL})(batch)
    torch.manual_seed(0)
    sampled = build_two_stage(config_file, {**FOCAL, f"{RPN}.PRIOR_PROB": 0.01})
    names = []
    for stage, prefix in zip(STAGES, ("loss_rpn_cls", "loss_cls")):
        for name, outputs in compute_stage_outputs(sampled, batch, stage).items():
            names.append("_".join(filter(None, (prefix, name))))
            targets = outputs.build_targets(())
            loss = LOSSES[stage](outputs.pred_logits, targets).sum() / targets.num_pos.sum()
            torch.testing.assert_close(loss, losses[names[-1]])
    assert set(names) == {x for x in losses if "cls" in x}


@pytest.mark.parametrize("stage", STAGES)
def test_the_model_stays_as_it_is(stage):
    """Its state, that of its losses, and its samples."""
    keys = {f"{BOX}.CLS_LOSS.NAME": "EqualizedFocalLoss", f"{BOX}.PRIOR_PROB": 0.01}
    keys[f"{BOX}.NORMALIZER.NAME"] = "EMAPosCount"
    model = build_two_stage(FASTER, keys)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    compute_stage_outputs(model, make_batch(*BOXES), stage)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert not any(x.training for x in model.modules())
    assert model.roi_heads.batch_size_per_image == 64
    with EventStorage():
        losses = model.train()(make_batch(*BOXES))
    assert all(x > 0 for x in losses.values())


def test_a_retinanet_in_training_mode_is_measured_in_evaluation_mode(make_cfg):
    """Its batch norm would use the statistics of the batch, and change its own."""
    torch.manual_seed(0)
    model = build_model(make_cfg("MODEL.RESNETS.NORM", "BN")).train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batch = make_batch(*BOXES)
    logits = compute_stage_outputs(model, batch)[""].pred_logits
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    for found, expected in zip(logits, compute_stage_outputs(model.eval(), batch)[""].pred_logits):
        assert torch.equal(found, expected)


def test_masks_are_not_needed():
    model = build_two_stage(MASK, {"MODEL.MASK_ON": True})
    (outputs,) = compute_stage_outputs(model, make_batch(*BOXES), "roi_head").values()
    assert outputs.build_targets({"iou", "anchors"}).iou.amax() > 0
    assert model.roi_heads.mask_on


def test_images_without_objects_have_background_alone():
    model = build_two_stage(FASTER)
    (outputs,) = compute_stage_outputs(model, make_batch([], []), "roi_head").values()
    targets = outputs.build_targets(())
    assert targets.num_pos.sum() == 0
    assert targets.num_samples.sum() > 100


def test_parts_of_detectron2_are_refused():
    model = build_two_stage(FASTER, is_ours=False)
    with pytest.raises(ValueError, match=r"MODEL\.ROI_HEADS\.NAME .* got StandardROIHeads"):
        compute_stage_outputs(model, make_batch(*BOXES), "roi_head")
    with pytest.raises(ValueError, match=r"META_ARCHITECTURE .* got GeneralizedRCNN"):
        compute_stage_outputs(model, make_batch(*BOXES))


def test_our_rpn_before_heads_of_detectron2():
    model = build_two_stage(FASTER, {"MODEL.ROI_HEADS.NAME": "StandardROIHeads"})
    (outputs,) = compute_stage_outputs(model, make_batch(*BOXES), "rpn").values()
    assert len(outputs.pred_logits) == len(outputs.level_names) == 5
