"""`focal-det loss-cdf`: what it prints, writes and draws, and errors that name an argument."""

import json

import pytest
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from focal_det.env import load_config
from focal_det.model_zoo import get_checkpoint_url, get_config_file
from focal_det.tools.loss_cdf import main

DIGITS = get_config_file("digits/focal_retinanet_tiny.yaml")
WORDS = [
    "--config-file",
    DIGITS,
    "--weights",
    get_checkpoint_url("digits/focal_retinanet_tiny.yaml"),
]
FASTER = ["--config-file", get_config_file("digits/faster_rcnn_tiny.yaml")]


def test_it_prints_and_draws_what_the_hardest_carry(tmp_path, capsys):
    out = tmp_path / "new" / "cdf.png"
    words = ["--images", "4", "--gammas", "0", "2", "--losses", "PolyFocalLoss"]
    assert main([*WORDS, *words, "--output", str(out)]) == 0
    output = capsys.readouterr().out
    content = json.loads(out.with_suffix(".json").read_text())
    assert content["images"] == 4
    assert content["dataset"] == "digits_val"
    assert out.stat().st_size > 10_000
    shares = {(x["curve"], x["side"]): x["share_of_hardest_1_percent"] for x in content["curves"]}
    assert len(shares) == 6
    share = shares["gamma 2", "negative"]
    assert share > 2 * shares["gamma 0", "negative"]
    assert f"the hardest 1 % carry {100 * share:.1f} % of the loss" in output


@pytest.mark.parametrize(("words", "stage"), [([], "roi_head"), (["--stage", "rpn"], "rpn")])
def test_stages_of_a_two_stage_detector_are_drawn(words, stage, tmp_path, capsys):
    """A softmax box head has focal losses of softmaxes, an RPN those of sigmoids."""
    cfg = load_config(FASTER[1])
    DetectionCheckpointer(build_model(cfg), str(tmp_path)).save("model")
    words += ["--weights", str(tmp_path / "model.pth"), "--images", "4"]
    assert main([*FASTER, *words, "--output", str(tmp_path / "cdf.png")]) == 0
    content = json.loads((tmp_path / "cdf.json").read_text())
    assert content["stage"] == stage
    assert [x["curve"] for x in content["curves"][::2]] == [
        f"gamma {x}" for x in ("0", "0.5", 1, 2)
    ]
    assert (tmp_path / "cdf.png").stat().st_size > 10_000
    num_boxes = {x["side"]: x["anchors"] for x in content["curves"]}
    assert num_boxes["positive"] > 0
    # Of four images: 300 proposals each, and all anchors.
    assert (num_boxes["negative"] > 1250) == (stage == "rpn")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config-file", "none.yaml"], "the config none.yaml does not exist"),
        (["--config-file", DIGITS], "no MODEL.WEIGHTS: give a trained checkpoint with --weights"),
        (
            [*WORDS[:2], "--weights", "none.pth"],
            "--weights or MODEL.WEIGHTS: none.pth does not exist",
        ),
        (
            [*WORDS, "MODEL.META_ARCHITECTURE", "GeneralizedRCNN"],
            "--stage roi_head: MODEL.ROI_HEADS.NAME must be one of FocalROIHeads, ",
        ),
        (
            [*WORDS, "--dataset", "digits_vol"],
            "Unknown data set 'digits_vol'. Did you mean 'digits_val'",
        ),
        (
            [*WORDS, "--losses", "OHEMLoss"],
            "OHEMLoss: the loss of an anchor depends on the other anchors",
        ),
        (
            [*WORDS, "--losses", "SoftmaxFocalLoss"],
            "SoftmaxFocalLoss: needs 11 logits per anchor, the model has 10",
        ),
        ([*WORDS, "--losses", "FocalLos"], "Did you mean 'FocalLoss'"),
        ([*WORDS, "--gammas", "-1"], "gamma must be in [0, inf), got -1.0"),
        ([*WORDS, "--output", "a.txt"], "--output must end in .png"),
        ([*WORDS, "--batch", "0"], "--batch: must be >= 1"),
        (
            [*WORDS, "--images", "1", "MODEL.META_ARCHITECTURE", "RetinaNet"],
            "must be FocalRetinaNet, got RetinaNet",
        ),
        ([*WORDS, "--stage", "rpn"], "--stage rpn: a RetinaNet has one stage only"),
        (
            [*FASTER, "--stage", "rpn", "MODEL.PROPOSAL_GENERATOR.NAME", "RPN"],
            "--stage rpn: MODEL.PROPOSAL_GENERATOR.NAME must be one of FocalRPN, got RPN",
        ),
        (
            [*FASTER, "--losses", "FocalLoss"],
            "FocalLoss: needs 10 logits per anchor, the model has 11",
        ),
    ],
)
def test_wrong_argument_is_named(words, message, capsys):
    with pytest.raises(SystemExit) as error:
        main(words)
    assert error.value.code == 2
    assert message in capsys.readouterr().err
