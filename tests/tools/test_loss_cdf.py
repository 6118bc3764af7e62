"""`focal-det loss-cdf`: what it prints, writes and draws, and errors that name an argument."""

import json

import pytest

from focal_det.model_zoo import get_checkpoint_url, get_config_file
from focal_det.tools.loss_cdf import main

DIGITS = get_config_file("digits/focal_retinanet_tiny.yaml")
WORDS = [
    "--config-file",
    DIGITS,
    "--weights",
    get_checkpoint_url("digits/focal_retinanet_tiny.yaml"),
]


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


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config-file", "none.yaml"], "the config none.yaml does not exist"),
        (["--config-file", DIGITS], "no MODEL.WEIGHTS: give a trained checkpoint with --weights"),
        ([*WORDS[:2], "--weights", "none.pth"], "--weights none.pth does not exist"),
        (
            [*WORDS, "MODEL.META_ARCHITECTURE", "GeneralizedRCNN"],
            "MODEL.META_ARCHITECTURE must be FocalRetinaNet or another RetinaNet here",
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
    ],
)
def test_wrong_argument_is_named(words, message, capsys):
    with pytest.raises(SystemExit) as error:
        main(words)
    assert error.value.code == 2
    assert message in capsys.readouterr().err
