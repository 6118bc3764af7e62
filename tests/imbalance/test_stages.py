"""Both stages of a two-stage detector: their samples and their first losses are the model's."""

import math

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from focal_det.imbalance.anchors import build_anchor_setup, measure_anchors
from focal_det.imbalance.describe_stages import describe_stages, make_stage_table
from focal_det.imbalance.first_loss import compute_first_loss, compute_loss_per_box
from focal_det.imbalance.stages import Balance, get_range_of_loss, measure_stages, to_json
from focal_det.modeling.settings import read_stages
from focal_det.registry import CLS_LOSS_REGISTRY
from tests.data.make_data import load_records
from tests.modeling.two_stage import BOX, C4, FASTER, RPN, make_two_stage_cfg

SMALL = {
    "MODEL.ROI_HEADS.NUM_CLASSES": 2,
    "INPUT.MIN_SIZE_TRAIN": (128,),
    "INPUT.RANDOM_FLIP": "none",
}
WITHOUT_SAMPLING = {f"{RPN}.SAMPLING": "none", f"{RPN}.NORMALIZER.NAME": "EMAPosCount"}
SIGMOIDS = {f"{BOX}.CLS_LOSS.NAME": "FocalLoss", f"{BOX}.PRIOR_PROB": 0.01}
COUNTS = np.array([2, 2])


def make_cfg(*overrides, config_file=FASTER, is_ours=True):
    keys = dict(SMALL)
    for more in overrides:
        keys.update(more)
    return make_two_stage_cfg(config_file, keys, is_ours=is_ours)


def run_first_step(cfg, records):
    """Losses and metrics of a model whose scores are all at the prior."""
    model = build_model(cfg).train()
    torch.nn.init.zeros_(model.proposal_generator.rpn_head.objectness_logits.weight)
    torch.nn.init.zeros_(model.roi_heads.box_predictor.cls_score.weight)
    mapper = DatasetMapper(cfg, is_train=True)
    with EventStorage() as storage:
        losses = model([mapper(x) for x in records])
    metrics = {name: value for name, (value, _) in storage.latest().items()}
    return {name: float(x.detach()) for name, x in losses.items()}, metrics


def measure(cfg, records):
    setup = build_anchor_setup(cfg)
    return measure_stages(read_stages(cfg), measure_anchors(records, setup), records, setup)


RPN_SETTINGS = {
    "default": {},
    "weight": {"MODEL.RPN.LOSS_WEIGHT": 0.5},
    "small sample": {"MODEL.RPN.BATCH_SIZE_PER_IMAGE": 8, "MODEL.RPN.POSITIVE_FRACTION": 0.25},
    "count": {f"{RPN}.NORMALIZER.NAME": "SampleCount", "MODEL.RPN.BOUNDARY_THRESH": 0},
    "no sampling": WITHOUT_SAMPLING,
    "prior": {**WITHOUT_SAMPLING, f"{RPN}.PRIOR_PROB": 0.01},
    "sampled prior": {f"{RPN}.PRIOR_PROB": 0.01},
}


@pytest.mark.parametrize("config_file", [FASTER, C4])
@pytest.mark.parametrize("name", RPN_SETTINGS)
def test_expected_loss_of_an_rpn_is_that_of_the_first_step(name, config_file, tmp_path):
    records = load_records(tmp_path)
    cfg = make_cfg(RPN_SETTINGS[name], config_file=config_file)
    losses, _ = run_first_step(cfg, records)
    first = measure(cfg, records)[0].first_loss
    assert first.loss == pytest.approx(losses["loss_rpn_cls"], rel=1e-4)
    assert 0 < first.background_share < 1


# GHM-C takes its densities and RS loss its ranks from the whole batch, so that image by image they
# are near only. The sampling-free loss takes the value of the box loss.
NOT_EXPECTED = {"GHMCLoss", "RankSortLoss", "SamplingFreeLoss"}


@pytest.mark.parametrize("loss", sorted(dict(CLS_LOSS_REGISTRY).keys() - NOT_EXPECTED))
def test_expected_loss_of_an_rpn_has_any_loss(loss, tmp_path):
    if CLS_LOSS_REGISTRY.build(loss, {}, num_classes=1).num_outputs(1) != 1:
        pytest.skip("an RPN has one logit per anchor")
    records = load_records(tmp_path)
    keys = {f"{RPN}.PRIOR_PROB": 0.01, f"{RPN}.CLS_LOSS.NAME": loss}
    cfg = make_cfg(keys, WITHOUT_SAMPLING)
    model = build_model(cfg).train()
    torch.nn.init.zeros_(model.proposal_generator.rpn_head.objectness_logits.weight)
    # Boxes far away, whose IoU is 0: what a loss of the IoU is expected to start with.
    torch.nn.init.constant_(model.proposal_generator.rpn_head.anchor_deltas.bias, 1e3)
    mapper = DatasetMapper(cfg, is_train=True)
    inputs = [mapper(x) for x in records]
    images = model.preprocess_image(inputs)
    features = model.backbone(images.tensor)
    with EventStorage():
        _, losses = model.proposal_generator(images, features, [x["instances"] for x in inputs])
    first = compute_first_loss(read_stages(cfg)[0], records, build_anchor_setup(cfg))
    assert first.loss == pytest.approx(float(losses["loss_rpn_cls"]), rel=1e-4)


@pytest.mark.parametrize("config_file", [FASTER, C4])
def test_first_losses_of_the_stock_detector_are_known(config_file, tmp_path):
    records = load_records(tmp_path)
    cfg = make_cfg({"MODEL.RPN.LOSS_WEIGHT": 2.0}, config_file=config_file, is_ours=False)
    losses, _ = run_first_step(cfg, records)
    rpn, head = measure(cfg, records)
    assert rpn.first_loss.loss == pytest.approx(losses["loss_rpn_cls"], rel=1e-4)
    low, high = get_range_of_loss(head, COUNTS)
    assert low == pytest.approx(math.log(3)) == pytest.approx(high)
    assert losses["loss_cls"] == pytest.approx(low, rel=1e-4)


@pytest.mark.parametrize("is_ours", [True, False])
@pytest.mark.parametrize("size", [8, 64, 256])
def test_sample_is_that_of_the_model(size, is_ours, tmp_path):
    records = load_records(tmp_path)
    keys = {"MODEL.RPN.BATCH_SIZE_PER_IMAGE": size, "MODEL.RPN.POSITIVE_FRACTION": 0.25}
    cfg = make_cfg(keys, is_ours=is_ours)
    _, metrics = run_first_step(cfg, records)
    rpn, head = measure(cfg, records)
    assert rpn.sampled == Balance(
        positives=round(len(records) * metrics["rpn/num_pos_anchors"]),
        negatives=round(len(records) * metrics["rpn/num_neg_anchors"]),
    )
    assert rpn.balance.positives >= rpn.sampled.positives > 0
    assert rpn.balance.negatives > rpn.sampled.negatives
    # Nothing is invented about proposals.
    assert head.balance is None and head.sampled is None and head.first_loss is None
    assert metrics["roi_head/num_fg_samples"] <= head.settings.max_positives


def test_loss_of_proposals_lies_in_the_expected_range(tmp_path):
    records = load_records(tmp_path)
    cfg = make_cfg(SIGMOIDS)
    losses, _ = run_first_step(cfg, records)
    _, head = measure(cfg, records)
    low, high = get_range_of_loss(head, COUNTS)
    assert low < losses["loss_cls"] < high
    # By hand: gamma 2, alpha 0.25; K = 2 sigmoids at 0.01.
    background = 2 * 0.75 * 0.01**2 * -math.log(0.99)
    of_object = background / 2 + 0.25 * 0.99**2 * -math.log(0.01)
    assert head.loss_per_box.tolist() == pytest.approx([of_object, of_object, background])
    assert (low, high) == pytest.approx((background, 0.75 * background + 0.25 * of_object))


@pytest.mark.parametrize(
    "keys",
    [
        # The divisor counts positives, which are not known.
        {**SIGMOIDS, f"{BOX}.NORMALIZER.NAME": "EMAPosCount"},
        # The targets are the IoU of predicted boxes.
        {**SIGMOIDS, f"{BOX}.CLS_LOSS.NAME": "QualityFocalLoss"},
        # The loss of a proposal depends on the others.
        {**SIGMOIDS, f"{BOX}.CLS_LOSS.NAME": "GHMCLoss"},
    ],
)
def test_unknown_loss_of_proposals_is_left_out(keys):
    _, head = read_stages(make_cfg(keys))
    assert compute_loss_per_box(head) is None


def test_loss_that_takes_the_value_of_another_is_left_out(tmp_path):
    records = load_records(tmp_path)
    keys = {f"{x}.CLS_LOSS.NAME": "SamplingFreeLoss" for x in (RPN, BOX)}
    rpn, head = measure(make_cfg(keys, {f"{BOX}.PRIOR_PROB": 0.01}), records)
    assert rpn.first_loss is None and head.loss_per_box is None


def test_hardest_anchors_are_not_guessed(tmp_path):
    records = load_records(tmp_path)
    keys = {f"{RPN}.SAMPLING": "hard", f"{BOX}.SAMPLING": "hard"}
    stages = measure(make_cfg(keys), records)
    rpn, head = stages
    assert rpn.first_loss is None and rpn.sampled is None and rpn.balance is not None
    assert head.loss_per_box is not None and get_range_of_loss(head, COUNTS) is None
    text = "\n".join(describe_stages(stages, COUNTS, None))
    assert "the 256 anchors with the largest losses count" in text
    assert "the 64 proposals with the largest losses count" in text
    assert "expected" not in text
    assert to_json(rpn, COUNTS)["initial_loss_rpn_cls"] is None


def test_words_say_what_sampling_leaves(tmp_path):
    records = load_records(tmp_path)
    keys = {"MODEL.RPN.BATCH_SIZE_PER_IMAGE": 8, "MODEL.RPN.POSITIVE_FRACTION": 0.25}
    stages = measure(make_cfg(keys), records)
    lines = describe_stages(stages, COUNTS, 0.5)
    before = stages[0].balance.negatives_per_positive
    after = stages[0].sampled.negatives_per_positive
    assert lines[0] == (
        f"RPN: {before:.0f} negatives per positive; random samples of 8 anchors, at most 2 of them "
        f"positive (1:3), with {after:.3g} negatives per positive"
    )
    assert "expected loss_rpn_cls" in lines[1] and "% of it from background" in lines[1]
    assert lines[1].endswith("; 0.5 with the settings that --write suggests")
    assert lines[2] == (
        "ROI head: random samples of 64 proposals, at most 16 of them positive (1:3); how many are "
        "positive is known only in training"
    )
    assert lines[3].endswith("loss_cls of the first step (all scores at the prior): about 1.1")
    head, rows = make_stage_table(stages, COUNTS)
    assert all(len(row) == len(head) for row in rows)
    assert rows[0][0] == "RPN" and "not known before training" in rows[1]


def test_set_without_positives_has_no_ratio(tmp_path):
    records = load_records(tmp_path)[2:3]
    stages = measure(make_cfg(), records)
    assert stages[0].balance.positives == 0
    assert "RPN: no positive anchors; random samples" in describe_stages(stages, COUNTS, None)[0]
    assert to_json(stages[0], COUNTS)["negatives_per_positive"] is None
    assert "inf" not in str(make_stage_table(stages, COUNTS))


def test_sample_without_positives_has_no_ratio(tmp_path):
    records = load_records(tmp_path)
    keys = {"MODEL.RPN.POSITIVE_FRACTION": 0.0, "MODEL.ROI_HEADS.POSITIVE_FRACTION": 0.0}
    stages = measure(make_cfg(keys), records)
    lines = describe_stages(stages, COUNTS, None)
    assert lines[0].endswith("random samples of 256 anchors, at most 0 of them positive")
    assert "inf" not in str(make_stage_table(stages, COUNTS))


def test_random_numbers_of_the_caller_are_left_alone(tmp_path):
    records = load_records(tmp_path)
    cfg = make_cfg()
    setup = build_anchor_setup(cfg)
    before = torch.get_rng_state()
    first = [compute_first_loss(read_stages(cfg)[0], records, setup) for _ in range(2)]
    assert first[0] == first[1]
    assert torch.equal(torch.get_rng_state(), before)
