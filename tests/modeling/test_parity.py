"""FocalRetinaNet with the weights of stock RetinaNet: the same names, losses and detections."""

import copy
import logging
import pickle

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from tests.conftest import assert_same_detections, make_batch


@pytest.fixture
def pair(make_cfg):
    """A function that builds the stock model and ours with the same weights."""

    def build(*overrides):
        stock = build_model(make_cfg("MODEL.META_ARCHITECTURE", "RetinaNet", *overrides))
        ours = build_model(make_cfg(*overrides))
        assert type(stock).__name__ == "RetinaNet" and type(ours).__name__ == "FocalRetinaNet"
        ours.load_state_dict(stock.state_dict())
        return stock, ours

    return build


def train(model, batch, steps, lr=0.002):
    """The losses of SGD steps, as floats."""
    optimizer = torch.optim.SGD(model.train().parameters(), lr=lr, momentum=0.9)
    history = []
    with EventStorage():
        for _ in range(steps):
            losses = model(batch)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            history.append({name: loss.item() for name, loss in losses.items()})
    return history


def detect(model, batch):
    """Detections of each image."""
    with torch.no_grad():
        outputs = model.eval()([{k: x[k] for k in ("image", "height", "width")} for x in batch])
    return [x["instances"] for x in outputs]


def make_detections(boxes, scores, classes):
    """Detections of an image of 100 x 100 pixels."""
    return Instances(
        (100, 100),
        pred_boxes=Boxes(torch.tensor(boxes)),
        scores=torch.tensor(scores),
        pred_classes=torch.tensor(classes),
    )


BOXES = [[10.0, 10.0, 50.0, 50.0], [12.0, 10.0, 52.0, 50.0], [60.0, 60.0, 90.0, 80.0]]
MOVED = [[10.0, 10.0, 50.0, 50.0], [12.0, 10.0, 52.1, 50.0], [60.0, 60.0, 90.0, 80.0]]
SCORES = [0.5, 0.5000001, 0.2]
OTHER_SCORES = [0.5, 0.5000001, 0.2001]
CLASSES = [1, 1, 0]


def test_detections_of_nearly_equal_scores_may_swap():
    one_order = make_detections(BOXES, SCORES, CLASSES)
    another = make_detections(BOXES, [0.5000001, 0.5, 0.2], CLASSES)
    assert_same_detections(one_order, another[[1, 0, 2]])
    assert_same_detections(one_order[[]], another[[]])


@pytest.mark.parametrize(
    "other",
    [
        pytest.param((MOVED, SCORES, CLASSES), id="a moved box"),
        pytest.param((BOXES, OTHER_SCORES, CLASSES), id="a changed score"),
        pytest.param((BOXES, SCORES, [1, 2, 0]), id="another class"),
        pytest.param((BOXES[:2], SCORES[:2], CLASSES[:2]), id="a missing detection"),
        pytest.param((BOXES[:2] + BOXES[1:2], SCORES, [1, 1, 1]), id="one twice"),
        pytest.param(([[0.0] * 4], [0.9], [0]), id="one of three"),
    ],
)
def test_detections_that_differ_are_not_the_same(other):
    want = make_detections(BOXES, SCORES, CLASSES)
    for pair_of_sides in ((make_detections(*other), want), (want, make_detections(*other))):
        with pytest.raises(AssertionError, match="without a partner"):
            assert_same_detections(*pair_of_sides)


def assert_same_detections_per_image(got, want):
    assert len(got) == len(want)
    for detections, wanted in zip(got, want):
        assert_same_detections(detections, wanted)


def test_state_dict_has_the_names_of_stock(pair):
    stock, ours = pair()
    assert set(ours.state_dict()) - set(stock.state_dict()) == {"normalizer.average"}
    assert not set(stock.state_dict()) - set(ours.state_dict())


@pytest.mark.parametrize(
    ("loss_type", "beta"), [("smooth_l1", 0.0), ("smooth_l1", 0.1), ("giou", 0.0)]
)
def test_losses_are_equal_over_three_optimizer_steps(pair, batch, loss_type, beta):
    overrides = (
        "MODEL.RETINANET.BBOX_REG_LOSS_TYPE",
        loss_type,
        "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA",
        beta,
    )
    # In float64, as batch norm makes a large difference after three steps from float32's rounding
    # before them.
    stock, ours = (model.double() for model in pair(*overrides))
    features = [torch.zeros(1, 1, s, s) for s in (16, 8, 4, 2, 1)]
    anchors = ours.anchor_generator(features)
    labels, _ = ours.label_anchors(anchors, [x["instances"] for x in batch])
    pos_per_level = [((x >= 0) & (x < 5)).sum() for x in labels[0].split([len(a) for a in anchors])]
    assert (
        sum(int(n > 0) for n in pos_per_level) >= 3
        and (labels[0] == -1).any()
        and (labels[2] == 5).all()
    )
    for got, want in zip(train(ours, batch, 3), train(stock, batch, 3)):
        assert got == pytest.approx(want, rel=1e-5)
    for got, want in zip(ours.parameters(), stock.parameters()):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)


def test_losses_of_each_gamma_and_alpha_are_equal(pair, batch):
    for gamma, alpha in ((0.0, 0.75), (2.0, -1.0), (5.0, 0.25)):
        stock, ours = pair(
            "MODEL.RETINANET.FOCAL_LOSS_GAMMA", gamma, "MODEL.RETINANET.FOCAL_LOSS_ALPHA", alpha
        )
        (got,), (want,) = train(ours, batch, 1), train(stock, batch, 1)
        assert got == pytest.approx(want, rel=1e-5)


def test_detections_are_equal_on_trained_weights(pair, batch):
    stock, ours = pair()
    # Not until scores saturate: of equal scores either may survive NMS.
    train(stock, batch, 30, lr=0.01)
    ours.load_state_dict(stock.state_dict())
    stock_detections = detect(stock, batch)
    assert sum(len(x) for x in stock_detections) > 5
    assert_same_detections_per_image(detect(ours, batch), stock_detections)


def test_detections_are_equal_at_threshold_zero(pair, batch):
    stock, ours = pair("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0)
    train(stock, batch, 3)
    # Scores far enough apart that rounding decides neither which survives NMS nor which is the
    # 100th.
    with torch.no_grad():
        stock.head.cls_score.weight.mul_(30)
    ours.load_state_dict(stock.state_dict())
    stock_detections = detect(stock, batch)
    assert min(len(x) for x in stock_detections) == 100
    assert_same_detections_per_image(detect(ours, batch), stock_detections)


def test_batch_of_images_gives_the_detections_of_each_alone(pair, batch):
    _, ours = pair("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0)
    with torch.no_grad():
        ours.head.cls_score.weight.mul_(30)  # as above
    alone = [detect(ours, [x])[0] for x in batch]
    assert_same_detections_per_image(detect(ours, batch), alone)


@pytest.mark.parametrize("form", ["pth", "pkl"])
def test_a_stock_checkpoint_loads_with_nothing_missing(pair, make_cfg, form, tmp_path, caplog):
    stock, _ = pair()
    if form == "pth":
        DetectionCheckpointer(stock, str(tmp_path)).save("model")
    else:
        weights = {k: v.numpy() for k, v in stock.state_dict().items()}
        content = {"model": weights, "__author__": "somebody", "matching_heuristics": True}
        (tmp_path / "model.pkl").write_bytes(pickle.dumps(content))
    ours = build_model(make_cfg("MODEL.RETINANET.PRIOR_PROB", 0.3))
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(ours).load(str(tmp_path / f"model.{form}"))
    assert (
        "not found in the checkpoint" not in caplog.text
        and "not used by the model" not in caplog.text
    )
    for name, value in stock.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_our_checkpoint_loads_into_stock(pair, make_cfg, tmp_path):
    _, ours = pair()
    DetectionCheckpointer(ours, str(tmp_path)).save("model")
    stock = build_model(
        make_cfg("MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.RETINANET.PRIOR_PROB", 0.3)
    )
    DetectionCheckpointer(stock).load(str(tmp_path / "model.pth"))
    for name, value in stock.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_fine_tuning_to_other_classes_drops_cls_score(pair, make_cfg, tmp_path, caplog):
    stock, _ = pair()
    DetectionCheckpointer(stock, str(tmp_path)).save("model")
    ours = build_model(
        make_cfg("MODEL.RETINANET.NUM_CLASSES", 3, "MODEL.RETINANET.PRIOR_PROB", 0.02)
    )
    with caplog.at_level(logging.WARNING):
        DetectionCheckpointer(ours).load(str(tmp_path / "model.pth"))
    assert "head.cls_score.weight" in caplog.text and "shape" in caplog.text
    for name, value in stock.state_dict().items():
        if "cls_score" not in name:
            assert torch.equal(ours.state_dict()[name], value), name
    torch.testing.assert_close(ours.head.cls_score.bias.sigmoid(), torch.full((27,), 0.02))


def test_vis_period_leaves_losses_and_gradients_unchanged(make_cfg, batch):
    model = build_model(make_cfg("VIS_PERIOD", 1)).train()
    twin = copy.deepcopy(model)
    twin.vis_period = 0
    with EventStorage() as storage:
        for x in (model, twin):
            sum(x(batch).values()).backward()
        assert any(
            "predict" in name.lower() or "box" in name.lower() for name, *_ in storage._vis_data
        )
    for (name, p), q in zip(model.named_parameters(), twin.parameters()):
        assert torch.equal(p.grad, q.grad), name


def test_losses_work_outside_a_trainer(make_cfg, batch):
    losses = build_model(make_cfg()).train()(batch)
    assert set(losses) == {"loss_cls", "loss_box_reg"} and all(
        x.isfinite() for x in losses.values()
    )


def test_a_pixel_sized_box_and_more_boxes_than_anchors(make_cfg):
    model = build_model(make_cfg()).train()
    boxes = [
        [i % 60, i // 60, i % 60 + 2, i // 60 + 2] for i in range(900)
    ]  # on 86 cells, 774 anchors
    for batch in (make_batch([[50, 50, 51, 51]]), make_batch(boxes, size=64)):
        losses = model(batch)
        sum(losses.values()).backward()
        assert all(x.isfinite() for x in losses.values())


def test_a_traced_model_detects_on_other_images(make_cfg, batch):
    from detectron2.export import TracingAdapter

    model = build_model(make_cfg("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0))
    train(model, batch, 30, lr=0.01)
    # So that the images have different numbers of detections.
    model.test_score_thresh = (
        torch.cat([x.scores for x in detect(model, batch)]).sort(descending=True).values[40].item()
    )
    images = [{"image": x["image"]} for x in batch]
    with torch.no_grad():
        adapter = TracingAdapter(
            model, images[:1], inference_func=lambda m, x: [m(x)[0]["instances"].get_fields()]
        )
        traced = torch.jit.trace(adapter, adapter.flattened_inputs, check_trace=False)
        counts = set()
        for x in images:
            want = model([x])[0]["instances"]
            (got,) = adapter.outputs_schema(traced(x["image"]))
            assert_same_detections(Instances(want.image_size, **got), want)
            counts.add(len(want))
    assert len(counts) > 1


@pytest.mark.parametrize("loss", ["FocalLoss", "SoftmaxFocalLoss", "EqualizedFocalLoss"])
def test_a_scripted_model_detects_what_the_eager_one_does(make_cfg, batch, loss):
    from detectron2.export import torchscript

    overrides = ("MODEL.FOCAL_DET.CLS_LOSS.NAME", loss, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0)
    model = build_model(make_cfg(*overrides)).eval()
    # Scores far enough apart that rounding does not decide about their order.
    with torch.no_grad():
        model.head.cls_score.weight.mul_(300)
    fields = {"pred_boxes": Boxes, "scores": torch.Tensor, "pred_classes": torch.Tensor}
    scripted = torchscript.scripting_with_instances(model, fields)
    for images in (batch[:2], [{"image": batch[2]["image"][:, :100, :70]}]):
        images = [{"image": x["image"]} for x in images]
        with torch.no_grad():
            sizes, *outputs = model.predict(images)
            detections = model.inference(*outputs, sizes)
            for got, want in zip(scripted(images), detections):
                assert got.image_size == want.image_size and len(want) == 100
                assert_same_detections(got, want)
    # The model itself goes on as it was.
    assert model.state_dict().keys() == build_model(make_cfg(*overrides)).state_dict().keys()
