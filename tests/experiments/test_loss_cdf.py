"""The losses of all anchors, computed one by one, whole or by class, level and size."""

import pytest
import torch
from detectron2.modeling import build_model

from focal_det.experiments.loss_cdf import (
    SIDES,
    add_batch,
    make_histograms,
    measure_losses,
    summarize,
)
from focal_det.experiments.loss_histogram import LossHistogram
from focal_det.losses import FocalLoss, QualityFocalLoss, SoftmaxFocalLoss
from focal_det.report.loss_cdf import make_loss_cdf_figure
from tests.modeling.two_stage import CASCADE, FASTER, build_two_stage


@pytest.fixture
def model(make_cfg):
    return build_model(make_cfg()).eval()


def collect(model, losses, batch, **options):
    histograms = make_histograms()
    for image in batch:
        image["height"], image["width"] = 128, 128
    add_batch(histograms, model, losses, batch, **options)
    return histograms


def test_sums_are_those_of_the_formula(model, batch):
    with torch.no_grad():
        _, anchors, logits, _ = model.predict(batch)
    labels = torch.stack(model.label_anchors(anchors, [x["instances"] for x in batch])[0])
    x = torch.cat(logits, dim=1).double()
    target = torch.nn.functional.one_hot(labels.clamp(min=0), 6)[..., :5].double()
    p_t = torch.where(target > 0, x.sigmoid(), 1 - x.sigmoid())
    loss = (torch.where(target > 0, 0.25, 0.75) * (1 - p_t) ** 2 * -p_t.log()).sum(dim=2)
    found = collect(model, {"FL": FocalLoss(alpha=0.25, gamma=2.0)}, batch)["FL"]
    for side, mask in (("positive", (labels >= 0) & (labels < 5)), ("negative", labels == 5)):
        assert found[side].count == int(mask.sum()) > 0
        assert float(found[side].sums.sum()) == pytest.approx(float(loss[mask].sum()), rel=1e-5)


@pytest.mark.parametrize("by", ["class", "level", "size"])
def test_groups_make_the_whole(model, batch, by):
    losses = {"QFL": QualityFocalLoss()}
    whole = collect(model, losses, batch)["QFL"]
    groups = collect(model, losses, batch, by=by, class_names=list("abcde"))
    for side in SIDES:
        assert sum(x[side].count for x in groups.values()) == whole[side].count
        torch.testing.assert_close(sum(x[side].sums for x in groups.values()), whole[side].sums)
    assert {"class": "QFL, b", "level": "QFL, P4", "size": "QFL, medium"}[by] in groups


def test_levels_have_the_names_of_the_model(make_cfg, batch):
    levels = ["p2", "p3", "p4", "p5", "p6", "p7"]
    sizes = [[16], [32], [64], [128], [256], [512]]
    cfg = make_cfg(
        *("MODEL.RETINANET.IN_FEATURES", levels, "MODEL.ANCHOR_GENERATOR.SIZES", sizes),
        *("MODEL.RESNETS.OUT_FEATURES", ["res2", "res3", "res4", "res5"]),
        *("MODEL.FPN.IN_FEATURES", ["res2", "res3", "res4", "res5"]),
    )
    losses = {"QFL": QualityFocalLoss()}
    groups = collect(build_model(cfg), losses, batch, by="level")
    assert list(groups) == [f"QFL, {x.upper()}" for x in levels]


def test_sizes_are_those_of_the_image_on_disk(model, batch):
    """Objects of 128 px in an image that is four times as large are large."""
    losses = {"FL": FocalLoss()}
    images = [batch[0]]
    names = {}
    for height in (128, 512):
        histograms = make_histograms()
        add_batch(
            histograms, model, losses, [{**images[0], "height": height, "width": height}], by="size"
        )
        names[height] = {name for name, sides in histograms.items() if sides["positive"].count}
    assert "FL, medium" in names[128] and names[512] == {"FL, large"}


def test_cascade_has_curves_for_each_stage(batch):
    model = build_two_stage(CASCADE)
    losses = {"softmax": SoftmaxFocalLoss(alpha=-1.0, gamma=0.0)}
    found = collect(model, losses, batch, stage="roi_head")
    assert list(found) == [f"softmax, stage{i}" for i in range(3)]
    # The objects themselves are among the proposals of the first stage.
    assert found["softmax, stage0"]["positive"].count >= 4
    by_size = collect(model, losses, batch, stage="roi_head", by="size")
    assert "softmax, stage2, medium" in by_size


def test_rpn_has_curves_for_each_level(batch):
    losses = {"FL": FocalLoss()}
    model = build_two_stage(FASTER)
    whole = collect(model, losses, batch, stage="rpn")["FL"]
    groups = collect(model, losses, batch, stage="rpn", by="level")
    assert list(groups) == [f"FL, P{i}" for i in range(2, 7)]
    for side in SIDES:
        assert sum(x[side].count for x in groups.values()) == whole[side].count > 0
    # Every anchor of the three images that is not ignored, not a sample of 256.
    assert whole["negative"].count > 3 * 256


@pytest.mark.parametrize(
    ("stage", "by", "message"),
    [
        ("roi_head", "level", "--by level: the proposals of a box head have no level"),
        ("rpn", "class", "--by class: the rpn does not tell classes apart"),
    ],
)
def test_groups_that_a_stage_lacks_are_refused(stage, by, message):
    with pytest.raises(ValueError, match=message):
        measure_losses(None, None, {}, [], stage=stage, by=by)


def fill(losses):
    histogram = LossHistogram()
    histogram.add(losses)
    return histogram


def test_rows_are_those_of_curves_with_losses():
    histograms = {
        "a": {"positive": fill(torch.randn(20_000).abs()), "negative": fill(torch.empty(0))}
    }
    (row,) = summarize(histograms)
    assert (row["side"], row["anchors"]) == ("positive", 20_000)
    assert row["fractions"][-1] == 1
    assert row["shares"][-1] == pytest.approx(1)
    assert len(row["shares"]) < 1000


def test_figure_has_a_line_for_each_curve_with_losses():
    histograms = {
        str(i): {"positive": fill(torch.rand(10)), "negative": fill(torch.empty(0))}
        for i in range(9)
    }
    figure = make_loss_cdf_figure(histograms, "a title")
    positives, negatives = figure.axes
    assert figure.get_suptitle() == "a title"
    assert positives.get_title() == "10 positive anchors"
    assert negatives.get_title() == "no negative anchors"
    assert len({(x.get_color(), x.get_linestyle()) for x in positives.lines}) == 9
    assert not negatives.lines
