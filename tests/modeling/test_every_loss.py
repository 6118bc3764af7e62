"""Every registered loss in the detector, selected by config alone."""

import copy

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from fvcore.nn.precise_bn import update_bn_stats

from focal_det.registry import CLS_LOSS_REGISTRY
from tests.conftest import ROOT

NAMES = sorted(dict(CLS_LOSS_REGISTRY))
NAME = "MODEL.FOCAL_DET.CLS_LOSS.NAME"
ARGS = "MODEL.FOCAL_DET.CLS_LOSS.ARGS"
STATEFUL = [name for name in NAMES if CLS_LOSS_REGISTRY.get(name).stateful]
every_loss = pytest.mark.parametrize("name", NAMES)


def test_every_loss_has_a_config():
    names = []
    for path in ROOT.glob("configs/losses/[a-z]*.yaml"):
        cfg = get_cfg()
        cfg.merge_from_file(str(path))
        names.append(cfg.MODEL.FOCAL_DET.CLS_LOSS.NAME)
    assert sorted(names) == NAMES


@every_loss
def test_it_trains_under_the_optimizer(name, make_cfg, batch):
    model = build_model(make_cfg(NAME, name)).train()
    before = copy.deepcopy(model.head.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    with EventStorage():
        for _ in range(3):
            losses = model(batch)
            assert set(losses) == {"loss_cls", "loss_box_reg"} and all(
                x.isfinite() for x in losses.values()
            )
            optimizer.zero_grad()
            sum(losses.values()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
    after = model.head.state_dict()
    assert all(
        after[key].isfinite().all() and not torch.equal(after[key], before[key])
        for key in before
        if "prior" not in key
    )


@every_loss
def test_drawing_detections_leaves_the_gradients(name, make_cfg, batch):
    model = build_model(make_cfg(NAME, name, "VIS_PERIOD", 1)).train()
    twin = copy.deepcopy(model)
    twin.vis_period = 0
    with EventStorage():
        for x in (model, twin):
            sum(x(batch).values()).backward()
    for (name, p), q in zip(model.named_parameters(), twin.named_parameters()):
        assert torch.equal(p.grad, q[1].grad), name


# A loss that takes the value of the box loss has none of its own.
@pytest.mark.parametrize(
    "name", [x for x in NAMES if not CLS_LOSS_REGISTRY.get(x).scaled_to_box_loss]
)
def test_its_first_loss_is_near_that_of_the_prior(name, make_cfg, batch, caplog):
    with caplog.at_level("INFO", logger="detectron2.focal_det"):
        build_model(
            make_cfg(NAME, name, "MODEL.FOCAL_DET.NORMALIZER.NAME", "GlobalPosCount")
        ).train()(batch)
    (record,) = [x for x in caplog.records if "with every score at the prior" in x.message]
    first, initial = (float(x.rstrip(";")) for x in record.message.split() if x[0].isdigit())
    assert first == pytest.approx(initial, rel=0.2) and record.levelname == "INFO"


def test_the_loss_at_the_prior_is_that_of_the_formula(make_cfg, batch, caplog):
    # pi = 0.5: every term is -0.25 log(0.5) times alpha_t; 1 - alpha_t for all but the positives'
    # own class.
    cfg = make_cfg(
        "MODEL.RETINANET.PRIOR_PROB", 0.5, "MODEL.FOCAL_DET.NORMALIZER.NAME", "GlobalPosCount"
    )
    model = build_model(cfg).train()
    with caplog.at_level("INFO", logger="detectron2.focal_det"):
        model(batch)
    anchors = model.anchor_generator([torch.zeros(1, 1, s, s) for s in (16, 8, 4, 2, 1)])
    labels = torch.stack(model.label_anchors(anchors, [x["instances"] for x in batch])[0])
    num_pos, num_terms = ((labels >= 0) & (labels < 5)).sum(), 5 * (labels >= 0).sum()
    want = 0.1733 * (0.25 * num_pos + 0.75 * (num_terms - num_pos)) / num_pos
    assert f"with every score at the prior it would be {want:.3g}"[:-1] in caplog.text


def test_features_that_are_far_too_large_are_warned_of_once(make_cfg, batch, caplog):
    model = build_model(
        make_cfg("MODEL.PIXEL_STD", [0.01, 0.01, 0.01], "MODEL.RESNETS.NORM", "FrozenBN")
    ).train()
    with torch.no_grad():
        model.head.cls_score.weight.mul_(100)
    for _ in range(2):
        model(batch)
    (record,) = [x for x in caplog.records if "loss_cls of the first batch" in x.message]
    assert record.levelname == "WARNING" and "MODEL.PIXEL_MEAN" in record.message


def test_a_trained_head_is_not_compared_with_the_prior(make_cfg, batch, caplog):
    model = build_model(make_cfg()).train()
    with torch.no_grad():
        model.head.cls_score.bias.add_(0.1)
    with caplog.at_level("INFO"):
        model(batch)
    assert "loss_cls of the first batch" not in caplog.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [f"{ARGS}.FocalLoss.alpha_per_class", [0.5, 0.5]],
            r"CLS_LOSS: alpha_per_class must have one value for each of the 5 classes, got 2",
        ),
        (
            [f"{ARGS}.FocalLoss.alpha_per_class", [0.5, 0.5, 2.0, 0.5, 0.5]],
            r"CLS_LOSS: alpha_per_class\[2\] must be in \[0, 1\], got 2.0",
        ),
        (
            [f"{ARGS}.FocalLoss.gamma_per_class", [-1.0] * 5],
            r"gamma_per_class\[0\] must be in \[0, inf\), got -1.0",
        ),
        (
            [NAME, "FocalStarLoss", "MODEL.RETINANET.FOCAL_LOSS_GAMMA", 0.0],
            r"CLS_LOSS: gamma must be in \(0, inf\), got 0.0",
        ),
        ([NAME, "OHEMLoss", f"{ARGS}.OHEMLoss.batch", 0], r"batch must be in \[1, inf\), got 0"),
        (
            [NAME, "OHEMLoss", f"{ARGS}.OHEMLoss.nms_thresh", 0.0],
            r"nms_thresh must be in \(0, 1\], got 0.0",
        ),
        (
            [NAME, "HingeLoss", f"{ARGS}.HingeLoss.threshold", 1.5],
            r"threshold must be in \(0, 1\], got 1.5",
        ),
        (
            [NAME, "PolyFocalLoss", f"{ARGS}.PolyFocalLoss.epsilon", -2.0],
            r"epsilon must be in \[-1, inf\), got -2.0",
        ),
        (
            [NAME, "VarifocalLoss", f"{ARGS}.VarifocalLoss.neg_weight", -1.0],
            r"neg_weight must be in \[0, inf\), got -1.0",
        ),
        (
            [NAME, "QualityFocalLoss", f"{ARGS}.QualityFocalLoss.beta", -1.0],
            r"beta must be in \[0, inf\), got -1.0",
        ),
        (
            [NAME, "GHMCLoss", f"{ARGS}.GHMCLoss.momentum", 1.0],
            r"momentum must be in \[0, 1\), got 1.0",
        ),
        (
            [NAME, "EqualizedFocalLoss", f"{ARGS}.EqualizedFocalLoss.scale", -1.0],
            r"scale must be in \[0, inf\), got -1.0",
        ),
        (
            [NAME, "EqualizedQualityFocalLoss", f"{ARGS}.EqualizedQualityFocalLoss.scale", -1.0],
            r"scale must be in \[0, inf\), got -1.0",
        ),
        (
            [NAME, "MatchabilityAwareLoss", f"{ARGS}.MatchabilityAwareLoss.neg_weight", -1.0],
            r"neg_weight must be in \[0, inf\), got -1.0",
        ),
        (
            [NAME, "RankSortLoss", f"{ARGS}.RankSortLoss.delta", -0.5],
            r"delta must be in \[0, inf\), got -0.5",
        ),
        (
            [NAME, "AsymmetricLoss", f"{ARGS}.AsymmetricLoss.shift", 1.0],
            r"shift must be in \[0, 1\), got 1.0",
        ),
        (
            [NAME, "AsymetricLoss"],
            r"Unknown classification loss 'AsymetricLoss'\. Did you mean 'AsymmetricLoss'",
        ),
        (
            ["MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS", [0.1]],
            "PRIOR_PROB_PER_CLASS: prior must have one value for each of the 5 classes, got 1",
        ),
    ],
)
def test_a_wrong_value_names_argument_range_and_value(make_cfg, overrides, message):
    with pytest.raises((KeyError, ValueError), match=message):
        build_model(make_cfg(*overrides))


def test_lists_per_class_reach_loss_and_head(make_cfg):
    priors, alphas = [0.01, 0.02, 0.03, 0.04, 0.05], [0.1, 0.2, 0.3, 0.4, 0.5]
    cfg = make_cfg(
        "MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS", priors, f"{ARGS}.FocalLoss.alpha_per_class", alphas
    )
    model = build_model(cfg)
    torch.testing.assert_close(
        model.head.cls_score.bias.sigmoid().reshape(9, 5)[4], torch.tensor(priors)
    )
    torch.testing.assert_close(model.cls_loss.alpha_per_class, torch.tensor(alphas))
    assert not [x for x in model.state_dict() if "per_class" in x or "prior" in x]


@pytest.mark.parametrize("name", ["FocalLoss", *STATEFUL])
def test_precise_bn_moves_batch_norm_and_no_state_of_ours(name, make_cfg, batch):
    model = build_model(make_cfg(NAME, name)).train()
    model(batch)
    before = copy.deepcopy(model.state_dict())
    with EventStorage():
        update_bn_stats(model, [batch] * 3, num_iters=3)
    for key, value in model.state_dict().items():
        of_batch_norm = key.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert torch.equal(value, before[key]) != of_batch_norm, key


@pytest.mark.parametrize("name", STATEFUL)
def test_checkpoint_holds_the_state_of_a_loss(name, make_cfg, batch, caplog, tmp_path):
    from detectron2.checkpoint import DetectionCheckpointer

    model = build_model(make_cfg(NAME, name)).train()
    model(batch)
    DetectionCheckpointer(model, str(tmp_path)).save("ours")
    resumed = build_model(make_cfg(NAME, name))
    DetectionCheckpointer(resumed).load(str(tmp_path / "ours.pth"))
    for (key, value), other in zip(
        model.cls_loss.state_dict().items(), resumed.cls_loss.state_dict().values()
    ):
        assert torch.equal(value, other) and value.abs().sum() > 0, key
    stock = build_model(make_cfg("MODEL.META_ARCHITECTURE", "RetinaNet"))
    DetectionCheckpointer(stock, str(tmp_path)).save("stock")
    DetectionCheckpointer(build_model(make_cfg(NAME, name))).load(str(tmp_path / "stock.pth"))
    assert "not found in the checkpoint" not in caplog.text
