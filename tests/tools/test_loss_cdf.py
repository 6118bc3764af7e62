"""`focal-det loss-cdf`: the losses of all anchors, computed one by one, whole or by class, level and size."""

import json
from collections import defaultdict

import pytest
import torch
from detectron2.modeling import build_model

from focal_det.experiments.loss_cdf import SIDES, LossHistogram
from focal_det.losses import FocalLoss, QualityFocalLoss
from focal_det.model_zoo import get_checkpoint_url, get_config_file
from focal_det.tools.loss_cdf import add_batch, main

DIGITS = get_config_file("digits/focal_retinanet_tiny.yaml")
WORDS = [
    "--config-file",
    DIGITS,
    "--weights",
    get_checkpoint_url("digits/focal_retinanet_tiny.yaml"),
]


@pytest.fixture
def model(make_cfg):
    return build_model(make_cfg()).eval()


def collect(model, losses, batch, **options):
    histograms = defaultdict(lambda: {side: LossHistogram() for side in SIDES})
    for image in batch:
        image["height"], image["width"] = 128, 128
    add_batch(histograms, model, losses, batch, **options)
    return histograms


def test_the_sums_are_those_of_each_anchor_by_the_formula(model, batch):
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


def test_sizes_are_those_of_the_image_on_disk(model, batch):
    """Objects of 128 px in an image that is four times as large are large."""
    losses = {"FL": FocalLoss()}
    images = [batch[0]]
    names = {}
    for height in (128, 512):
        histograms = defaultdict(lambda: {side: LossHistogram() for side in SIDES})
        add_batch(
            histograms, model, losses, [{**images[0], "height": height, "width": height}], by="size"
        )
        names[height] = {name for name, sides in histograms.items() if sides["positive"].count}
    assert "FL, medium" in names[128] and names[512] == {"FL, large"}


def test_the_program_says_and_draws_what_the_hardest_carry(tmp_path, capsys):
    out = tmp_path / "new" / "cdf.png"
    assert (
        main(
            [
                *WORDS,
                "--images",
                "4",
                "--gammas",
                "0",
                "2",
                "--losses",
                "PolyFocalLoss",
                "--write",
                str(out),
            ]
        )
        == 0
    )
    content, output = json.loads(out.with_suffix(".json").read_text()), capsys.readouterr().out
    assert (
        content["images"] == 4
        and content["dataset"] == "digits_val"
        and out.stat().st_size > 10_000
    )
    shares = {(x["curve"], x["side"]): x["share_of_hardest_1_percent"] for x in content["curves"]}
    assert len(shares) == 6 and shares["gamma 2", "negative"] > 2 * shares["gamma 0", "negative"]
    assert (
        f"the hardest 1 % carry {100 * shares['gamma 2', 'negative']:.1f} % of the loss" in output
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config-file", "none.yaml"], "the config none.yaml does not exist"),
        (["--config-file", DIGITS], "give its checkpoint with --weights"),
        ([*WORDS[:2], "--weights", "none.pth"], "--weights none.pth does not exist"),
        (
            [*WORDS, "--dataset", "digits_vol"],
            "Unknown data set 'digits_vol'. Did you mean 'digits_val'",
        ),
        ([*WORDS, "--losses", "OHEMLoss"], "OHEMLoss: the loss of an anchor depends on the others"),
        (
            [*WORDS, "--losses", "SoftmaxFocalLoss"],
            "SoftmaxFocalLoss: needs 11 logits per anchor, the model has 10",
        ),
        ([*WORDS, "--losses", "FocalLos"], "Did you mean 'FocalLoss'"),
        ([*WORDS, "--gammas", "-1"], "gamma must be in [0, inf), got -1.0"),
        ([*WORDS, "--write", "a.txt"], "--write takes a file that ends in .png"),
        ([*WORDS, "--batch", "0"], "--batch must be >= 1"),
        ([*WORDS, "MODEL.META_ARCHITECTURE", "RetinaNet"], "must be FocalRetinaNet, got RetinaNet"),
    ],
)
def test_a_wrong_argument_is_named(words, message, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert message in capsys.readouterr().err
