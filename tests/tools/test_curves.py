"""`focal-det curves`: draws the losses of its arguments, and names a wrong one."""

import cv2
import pytest

from focal_det.experiments.loss_specs import parse_loss
from focal_det.registry import CLS_LOSS_REGISTRY
from focal_det.tools.curves import FIGURE_1, main
from tests.conftest import run_python

REGISTERED = sorted(name for name, _ in CLS_LOSS_REGISTRY)
GAMMA, ALPHA, BETA = (
    "\N{GREEK SMALL LETTER GAMMA}=",
    "\N{GREEK SMALL LETTER ALPHA}=",
    "\N{GREEK SMALL LETTER BETA}=",
)


def get_error(capsys, *argv):
    """The message for a wrong command line."""
    with pytest.raises(SystemExit) as error:
        main([str(x) for x in argv])
    assert error.value.code == 2
    return capsys.readouterr().err.removeprefix("focal-det curves: ")


def test_default_is_figure_1_of_the_paper(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main([]) == 0
    assert capsys.readouterr().out == f"The curves are in {tmp_path / 'curves.png'}\n"
    assert cv2.imread("curves.png") is not None
    assert [parse_loss(x)[1] for x in FIGURE_1] == [
        {"gamma": gamma, "alpha": -1} for gamma in (0, 0.5, 1, 2, 5)
    ]


def test_every_picture_has_the_losses_and_arguments(tmp_path, capsys):
    losses = [
        "FocalLoss:alpha=-1,gamma=0",
        "FocalLoss:alpha=-1,gamma=2",
        "FocalStarLoss:alpha=-1,gamma=2,beta=1",
    ]
    png, svg = tmp_path / "new" / "curves.png", tmp_path / "new" / "curves.svg"
    assert main([*losses, "--output", str(png), str(svg)]) == 0
    assert capsys.readouterr().out == f"The curves are in {png}, {svg}\n"
    assert cv2.imread(str(png)) is not None
    minus_one = "\N{MINUS SIGN}1"
    for label in (
        f"FocalLoss {ALPHA}{minus_one} {GAMMA}0",
        f"FocalStarLoss {ALPHA}{minus_one} {GAMMA}2 {BETA}1",
    ):
        assert label in svg.read_text()


@pytest.mark.parametrize("name", REGISTERED)
def test_every_registered_loss_can_be_drawn(name, tmp_path):
    assert main([name, "--output", str(tmp_path / "a.svg")]) == 0
    assert name in (tmp_path / "a.svg").read_text()


def test_options_may_stand_between_losses(tmp_path):
    main(["FocalLoss", "--iou", "0.65", "QualityFocalLoss", "--output", str(tmp_path / "a.svg")])
    text = (tmp_path / "a.svg").read_text()
    assert "FocalLoss" in text and "QualityFocalLoss" in text and "losses that use it: 0.65" in text


@pytest.mark.parametrize(
    ("spec", "want"),
    [
        ("A", {}),
        ("A:", {}),
        ("A:x=2,y=-1", {"x": 2, "y": -1}),
        ("A:x=1e-3, y = .5", {"x": 0.001, "y": 0.5}),  # yaml alone would take 1e-3 for a word
        ("A:x=[0.25, 0.5],y=[]", {"x": [0.25, 0.5], "y": []}),
        ("A:x=true,y=True,z=null", {"x": True, "y": True, "z": None}),
        ("A:x=mean,y='a'", {"x": "mean", "y": "a"}),
    ],
)
def test_values_are_python_literals_or_yaml(spec, want):
    assert parse_loss(spec) == ("A", want)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("FocaLoss:gamma=2", "Unknown classification loss 'FocaLoss'. Did you mean 'FocalLoss'?"),
        ("FocalLoss:gama=2", "Unknown argument of FocalLoss 'gama'. Did you mean 'gamma'?"),
        ("FocalLoss:gamma=-2", "gamma must be in [0, inf), got -2"),
        ("FocalLoss:gamma=two", ""),  # what the loss says of a word is its own affair
        ("FocalLoss:gamma", "arguments are written ARGUMENT=VALUE,..., got 'gamma'"),
        ("FocalLoss:gamma=", "arguments are written ARGUMENT=VALUE,..., got 'gamma='"),
        ("FocalLoss:gamma=1,gamma=2", "argument gamma is given twice"),
        ("FocalLoss:gamma=[1", "gamma must be a number, a list or a word, got '[1'"),
        (
            "FocalLoss:alpha_per_class=[0.2,0.3]",
            "alpha_per_class must have one value for each of the 1 classes, got 2",
        ),
        ("", "Unknown classification loss ''"),
    ],
)
def test_wrong_loss_is_named(spec, message, tmp_path, capsys):
    error = get_error(capsys, "FocalLoss", spec, "--output", tmp_path / "a.png")
    assert error.startswith(f"{spec}: ") and message in error
    assert not (tmp_path / "a.png").exists()


def test_wrong_iou_and_too_many_losses_are_named(capsys):
    assert get_error(capsys, "--iou", "1.5") == "--iou must be in [0, 1], got 1.5\n"
    losses = [f"FocalLoss:gamma={i}" for i in range(13)]
    assert get_error(capsys, *losses) == "a picture has room for 12 losses, got 13\n"


@pytest.mark.parametrize("file", ["FocalLoss:gamma=0.5", "a.gif", "a"])
def test_file_that_is_not_a_picture_is_named(file, capsys):
    error = get_error(capsys, "--output", "a.png", file)
    assert f"got '{file}'" in error and "losses come before --output" in error


def test_help_lists_the_losses_with_their_arguments(capsys):
    with pytest.raises(SystemExit) as error:
        main(["--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert error.value.code == 0 and "FocalStarLoss (alpha, gamma, beta)" in text
    assert all(name in text for name in REGISTERED)


def test_it_needs_no_detectron2(tmp_path):
    code = (
        "import sys\n"
        "for name in ('detectron2', 'cv2', 'pycocotools'): sys.modules[name] = None\n"
        "from focal_det.tools.__main__ import main\n"
        "sys.exit(main(['curves', '--output', sys.argv[1]]))"
    )
    _, output = run_python("-c", code, tmp_path / "a.png", env={"DETECTRON2_ENV_MODULE": None})
    assert output.strip() == f"The curves are in {tmp_path / 'a.png'}"
