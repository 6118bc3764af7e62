"""Two-stage detectors: equal to Detectron2's with the defaults, and right with other settings."""

import logging
import math

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from torch.nn import functional as F

from focal_det.losses import FocalLoss
from focal_det.losses.normalizers import GlobalPosCount, SampleCount
from focal_det.modeling.fast_rcnn import FocalFastRCNNOutputLayers
from tests.conftest import assert_same_detections, make_batch
from tests.modeling.two_stage import (
    BOX,
    C4,
    CASCADE,
    FASTER,
    MASK,
    RPN,
    WITHOUT_SAMPLING,
    build_two_stage,
    compute_losses,
    make_two_stage_cfg,
)

BOXES = ([[16, 16, 52, 52]], [[30, 40, 110, 120], [5, 5, 40, 60]])
FOCAL = {f"{BOX}.CLS_LOSS.NAME": "FocalLoss", f"{BOX}.PRIOR_PROB": 0.01}


def train_step(model, batch, optimizer):
    """Losses and gradients of a step whose random numbers are always the same."""
    torch.manual_seed(7)
    losses = compute_losses(model, batch)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    grads = {k: x.grad.clone() for k, x in model.named_parameters() if x.grad is not None}
    optimizer.step()
    return losses, grads


def detect(model, batch):
    with torch.no_grad():
        found = [x["instances"] for x in model.eval()(batch)]
    model.train()
    return found


@pytest.mark.parametrize("config_file", [FASTER, C4, CASCADE], ids=["FPN", "C4", "cascade"])
def test_defaults_equal_the_stock_detector(config_file):
    torch.manual_seed(0)
    stock = build_two_stage(config_file, is_ours=False)
    torch.manual_seed(0)
    ours = build_two_stage(config_file)
    batch = make_batch(*BOXES)
    before = ours.state_dict()
    assert list(before) == list(stock.state_dict())
    assert all(torch.equal(v, before[k]) for k, v in stock.state_dict().items())
    for got, want in zip(detect(ours, batch), detect(stock, batch)):
        assert len(want) > 0
        assert_same_detections(got, want)
    optimizers = [torch.optim.SGD(x.parameters(), lr=0.01) for x in (stock, ours)]
    for _ in range(3):
        # Sums in another order differ in the last digits, which three steps would multiply.
        ours.load_state_dict(stock.state_dict())
        want, want_grads = train_step(stock, batch, optimizers[0])
        got, grads = train_step(ours, batch, optimizers[1])
        assert list(got) == list(want)
        for name, loss in want.items():
            torch.testing.assert_close(got[name], loss, rtol=2e-6, atol=1e-7)
        for name, grad in want_grads.items():
            torch.testing.assert_close(grads[name], grad, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    "config_file",
    [
        pytest.param(FASTER, id="FPN"),
        pytest.param(C4, marks=pytest.mark.slow, id="C4"),
        pytest.param(CASCADE, id="cascade"),
    ],
)
@pytest.mark.parametrize("sampling", ["none", "hard"])
def test_focal_loss_in_both_stages_learns(config_file, sampling):
    keys = {**WITHOUT_SAMPLING, **FOCAL, f"{RPN}.SAMPLING": sampling, f"{BOX}.SAMPLING": sampling}
    keys.update({f"{RPN}.CLS_LOSS.ARGS.FocalLoss.gamma": 2.0})
    model = build_two_stage(config_file, keys)
    batch = make_batch(*BOXES)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.002)
    first, *_, last = (train_step(model, batch, optimizer)[0] for _ in range(8))
    assert all(x.isfinite() for x in last.values())
    names = [x for x in first if "cls" in x]
    assert sum(last[x] for x in names) < sum(first[x] for x in names)


def test_mask_head_beside_our_box_head_trains():
    model = build_two_stage(MASK, {"MODEL.MASK_ON": True, **FOCAL})
    batch = make_batch(*BOXES)
    for item in batch:
        corners = [
            [x0, y0, x1, y0, x1, y1, x0, y1]
            for x0, y0, x1, y1 in item["instances"].gt_boxes.tensor.tolist()
        ]
        item["instances"].gt_masks = PolygonMasks([[x] for x in corners])
    losses = compute_losses(model, batch)
    assert "loss_mask" in losses and all(x.isfinite() for x in losses.values())
    assert all(x.has("pred_masks") for x in detect(model, batch))


def make_proposals(labels, boxes, gt_boxes, num_images=2):
    """Instances of each image with the same number of proposals, as the heads label them."""
    proposals = []
    for part in range(num_images):
        instances = Instances((128, 128))
        instances.proposal_boxes = Boxes(boxes.chunk(num_images)[part])
        instances.gt_boxes = Boxes(gt_boxes.chunk(num_images)[part])
        instances.gt_classes = labels.chunk(num_images)[part]
        proposals.append(instances)
    return proposals


def make_layers(cls_loss, normalizer, **args):
    return FocalFastRCNNOutputLayers(
        ShapeSpec(channels=8),
        box2box_transform=Box2BoxTransform(weights=(10.0, 10.0, 5.0, 5.0)),
        num_classes=5,
        cls_loss=cls_loss,
        normalizer=normalizer,
        **args,
    )


def make_boxes(num):
    corners = torch.rand(num, 2) * 60
    return torch.cat([corners, corners + 20 + torch.rand(num, 2) * 40], dim=1)


@pytest.mark.parametrize("normalizer", [GlobalPosCount(), SampleCount()])
def test_focal_loss_of_proposals_equals_a_float64_reference(normalizer):
    layers = make_layers(FocalLoss(alpha=0.25, gamma=2.0), normalizer, prior_prob=0.01)
    labels = torch.tensor([0, 4, 5, 5, -1, 2, 5, 5, 5, 3])
    boxes, gt_boxes = make_boxes(10), make_boxes(10)
    logits, deltas = torch.randn(10, 6), torch.randn(10, 20)
    with EventStorage():
        got = layers.losses((logits, deltas), make_proposals(labels, boxes, gt_boxes))

    one_hot = F.one_hot(labels.clamp(min=0), 6)[:, :5].double()
    p = logits[:, :5].double().sigmoid()
    p_t = p * one_hot + (1 - p) * (1 - one_hot)
    alpha_t = 0.25 * one_hot + 0.75 * (1 - one_hot)
    per_proposal = -(alpha_t * (1 - p_t) ** 2 * p_t.log()).sum(dim=1)
    is_pos = (labels >= 0) & (labels < 5)
    divisor = {GlobalPosCount: is_pos.sum(), SampleCount: (labels >= 0).sum()}[type(normalizer)]
    want_cls = per_proposal[labels >= 0].sum() / divisor
    own = deltas.view(10, 5, 4)[is_pos, labels[is_pos]].double()
    target = layers.box2box_transform.get_deltas(boxes[is_pos].double(), gt_boxes[is_pos].double())
    want_box = (own - target).abs().sum() / divisor
    torch.testing.assert_close(got["loss_cls"].double(), want_cls, rtol=1e-5, atol=0)
    torch.testing.assert_close(got["loss_box_reg"].double(), want_box, rtol=1e-5, atol=0)


def test_images_with_other_numbers_of_proposals():
    """Their padding costs nothing."""
    layers = make_layers(FocalLoss(), GlobalPosCount(), prior_prob=0.01)
    labels = torch.tensor([0, 5, 5, 2, 5, 5])
    boxes, gt_boxes = make_boxes(6), make_boxes(6)
    predictions = (torch.randn(6, 6), torch.randn(6, 20))
    even = make_proposals(labels, boxes, gt_boxes)
    whole = make_proposals(labels, boxes, gt_boxes, num_images=1)[0]
    with EventStorage():
        want = layers.losses(predictions, even)
        got = layers.losses(predictions, [whole[:1], whole[1:1], whole[1:]])
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("labels", [[], [-1, -1], [5, 5]], ids=["none", "ignored", "background"])
@pytest.mark.parametrize("normalizer", [GlobalPosCount(), SampleCount()])
def test_proposals_without_objects(labels, normalizer):
    layers = make_layers(FocalLoss(), normalizer, prior_prob=0.01, telemetry_period=1)
    num = len(labels)
    proposal = Instances((128, 128))
    proposal.proposal_boxes = Boxes(make_boxes(num))
    proposal.gt_classes = torch.tensor(labels, dtype=torch.int64)
    features = torch.randn(num, 8, requires_grad=True)
    with EventStorage():
        losses = layers.losses(layers(features), [proposal])
    sum(losses.values()).backward()
    assert losses["loss_box_reg"] == 0
    assert (losses["loss_cls"] > 0) == (5 in labels)
    assert all(x.grad.isfinite().all() for x in layers.parameters())


def test_images_without_boxes_train():
    for keys in ({}, {**WITHOUT_SAMPLING, **FOCAL}):
        losses = compute_losses(build_two_stage(FASTER, keys), make_batch([], []))
        assert all(x.isfinite() for x in losses.values())


@pytest.mark.parametrize("num_classes", [80, 1203])
def test_sigmoid_scores_start_at_the_prior(num_classes):
    """A bias of 0 starts at K log(2): 55 for 80 classes, 834 for the 1203 of LVIS."""
    keys = {**FOCAL, f"{BOX}.CLS_LOSS.ARGS.FocalLoss.gamma": 0.0, f"{BOX}.PRIOR_PROB": 1e-4}
    keys["MODEL.ROI_HEADS.NUM_CLASSES"] = num_classes
    losses = compute_losses(build_two_stage(FASTER, keys), make_batch(*BOXES))
    assert losses["loss_cls"] < 5
    with pytest.raises(ValueError, match=r"ROI_BOX_HEAD: PRIOR_PROB 0 starts all .* such as 0.01"):
        build_two_stage(FASTER, {**keys, f"{BOX}.PRIOR_PROB": 0.0})


def test_weights_of_the_zoo_load_into_sigmoid_scores_and_back(tmp_path, caplog):
    """Softmax has K + 1 rows, of which sigmoids use K."""
    stock = build_two_stage(FASTER, is_ours=False)
    DetectionCheckpointer(stock, str(tmp_path)).save("zoo")
    ours = build_two_stage(FASTER, FOCAL)
    with caplog.at_level(logging.INFO, logger="detectron2.focal_det"):
        DetectionCheckpointer(ours).load(str(tmp_path / "zoo.pth"))
    assert "uses the rows of the classes and ignores that of background" in caplog.text
    got = ours.roi_heads.box_predictor.cls_score
    want = stock.roi_heads.box_predictor.cls_score
    assert torch.equal(got.weight[:5], want.weight[:5]) and not got.weight[5].any()

    caplog.clear()
    DetectionCheckpointer(ours, str(tmp_path)).save("ours")
    again = build_two_stage(FASTER, FOCAL)
    with caplog.at_level(logging.INFO, logger="detectron2.focal_det"):
        DetectionCheckpointer(again).load(str(tmp_path / "ours.pth"))
    assert "ignores that" not in caplog.text
    incompatible = DetectionCheckpointer(stock).load(str(tmp_path / "ours.pth"))
    assert not incompatible
    for x in (again, stock):
        assert all(torch.equal(v, x.state_dict()[k]) for k, v in ours.state_dict().items())


@pytest.mark.parametrize("stage", [RPN, BOX])
def test_a_divisor_of_samples_needs_a_sample(stage):
    """The sum over 200,000 anchors divided by 256 explodes; their mean trains no positive."""
    with pytest.raises(
        ValueError,
        match=rf"{stage}: NORMALIZER Sample\w+ divides by the size of a sample, .*EMAPosCount",
    ):
        build_two_stage(FASTER, {f"{stage}.SAMPLING": "none"})


def test_sampling_is_a_key_of_its_own():
    """No loss switches it by its name."""
    batch = make_batch(*BOXES)
    with EventStorage() as storage:
        build_two_stage(FASTER, FOCAL)(batch)
        assert storage.latest()["roi_head/num_bg_samples"][0] <= 64
    keys = {f"{BOX}.SAMPLING": "none", f"{BOX}.NORMALIZER.NAME": "GlobalPosCount"}
    with EventStorage() as storage:
        build_two_stage(FASTER, keys)(batch)
        assert storage.latest()["roi_head/num_bg_samples"][0] > 64


def test_hard_sampling_keeps_the_largest_losses_after_nms():
    layers = make_layers(
        FocalLoss(alpha=-1, gamma=0.0),
        SampleCount(),
        prior_prob=0.01,
        sampling="hard",
        batch_size_per_image=2,
    )
    # The first two overlap above 0.7, so that the second is dropped for the first.
    boxes = torch.tensor([[0, 0, 50, 50], [0, 0, 50, 49], [60, 60, 90, 90], [5, 70, 30, 100.0]])
    labels = torch.tensor([5, 5, 0, 5])
    logits = torch.full((4, 6), -20.0)
    logits[:, 1] = torch.tensor([3.0, 2.5, -20.0, 1.0])
    # The score of the positive is right, but its box is far off.
    logits[2, 0] = 20.0
    deltas = torch.full((4, 20), 4.0)
    with EventStorage():
        losses = layers.losses((logits, deltas), make_proposals(labels, boxes, boxes, 1))
    want_cls = F.softplus(logits[0, 1]) / 2
    torch.testing.assert_close(losses["loss_cls"], want_cls, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(losses["loss_box_reg"], torch.tensor(4 * 4.0 / 2))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({f"{RPN}.SAMPLING": "randm"}, r"RPN: .*SAMPLING.*randm.*random"),
        ({f"{RPN}.PRIOR_PROB": 1.5}, r"RPN: .*1\.5"),
        ({f"{RPN}.CLS_LOSS.NAME": "FocalLos"}, r"RPN\.CLS_LOSS: .*FocalLoss"),
        (
            {f"{RPN}.CLS_LOSS.NAME": "SoftmaxFocalLoss"},
            "RPN: CLS_LOSS SoftmaxFocalLoss needs 2 logits, but the layer has only 1",
        ),
        ({f"{BOX}.NORMALIZER.NAME": "PosCount"}, r"ROI_BOX_HEAD\.NORMALIZER: .*GlobalPosCount"),
        (
            {
                f"{BOX}.SAMPLING": "hard",
                f"{BOX}.CLS_LOSS.NAME": "OHEMLoss",
                f"{BOX}.PRIOR_PROB": 0.1,
            },
            "SAMPLING hard ranks anchors by their individual losses, but OHEMLoss",
        ),
        ({"MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": "gious"}, r"BBOX_REG_LOSS_TYPE.*giou"),
        ({"MODEL.RPN.NMS_THRESH": math.nan}, "not finite: MODEL.RPN.NMS_THRESH"),
    ],
)
def test_wrong_settings_are_refused_with_their_key(keys, message):
    with pytest.raises(ValueError, match=message):
        build_model(make_two_stage_cfg(FASTER, keys))


def test_class_id_without_an_output_is_refused():
    batch = make_batch(*BOXES)
    batch[1]["instances"].gt_classes[0] = 5
    with pytest.raises(ValueError, match=r"class id 5, but MODEL\.ROI_HEADS\.NUM_CLASSES is 5"):
        compute_losses(build_two_stage(FASTER), batch)


def test_box_without_area_gets_no_anchor():
    """Detectron2 assigns all anchors to it."""
    batch = make_batch([[16, 16, 52, 52], [30, 30, 30, 60]])
    with EventStorage() as storage:
        build_two_stage(FASTER)(batch)
        assert storage.latest()["rpn/num_pos_anchors"][0] < 20
        assert storage.latest()["focal_det/num_gt_boxes_without_anchor"][0] == 1


def test_telemetry_of_both_stages(caplog):
    keys = {"MODEL.FOCAL_DET.TELEMETRY_PERIOD": 1, **FOCAL}
    with caplog.at_level(logging.INFO, logger="detectron2.focal_det"), EventStorage() as storage:
        build_two_stage(CASCADE, keys)(make_batch(*BOXES))
        names = storage.latest()
    assert "focal_det/rpn/share_of_positives" in names
    assert "stage2/focal_det/roi_head/num_pos/0" in names
    assert abs(names["focal_det/rpn/prior_distance"][0]) < 0.2
    assert "loss_rpn_cls of the first batch is" in caplog.text
    assert "loss_cls of the first batch is" in caplog.text


@pytest.mark.parametrize(
    "name",
    [
        "OHEMLoss",
        "QualityFocalLoss",
        "EqualizedFocalLoss",
        "GHMCLoss",
        "VarifocalLoss",
        "RankSortLoss",
        "SamplingFreeLoss",
    ],
)
def test_losses_that_need_more_than_labels(name):
    """Boxes, the IoU of predictions, a state of their own, or the box loss."""
    keys = {**WITHOUT_SAMPLING, f"{RPN}.CLS_LOSS.NAME": name, f"{BOX}.CLS_LOSS.NAME": name}
    if name == "EqualizedFocalLoss":
        del keys[f"{RPN}.CLS_LOSS.NAME"]
    model = build_two_stage(FASTER, keys)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    for _ in range(2):
        losses, grads = train_step(model, make_batch(*BOXES), optimizer)
        assert all(x.isfinite() for x in losses.values())
        assert grads["roi_heads.box_predictor.cls_score.weight"].any()
        assert grads["proposal_generator.rpn_head.objectness_logits.weight"].any()


def test_priors_and_weights_per_class():
    priors = [0.01, 0.02, 0.03, 0.04, 0.05]
    keys = {
        **FOCAL,
        "MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS": priors,
        f"{BOX}.CLS_LOSS.ARGS.FocalLoss.alpha_per_class": [0.1, 0.2, 0.3, 0.4, 0.5],
    }
    layers = build_two_stage(FASTER, keys).roi_heads.box_predictor
    torch.testing.assert_close(layers.cls_score.bias[:5].sigmoid(), torch.tensor(priors))
    assert layers.stage_losses.cls_loss.alpha_per_class.tolist()[4] == 0.5
