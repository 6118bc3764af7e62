"""`focal-det check` of two-stage detectors: both stages, better anchors, keys nobody reads."""

import itertools
import json
import logging
import re

import pytest
from detectron2.modeling import build_model

from focal_det.env import load_config
from focal_det.tools.check import main
from tests.data.make_data import shrink_squares, write_coco, write_two_stage_config
from tests.modeling.two_stage import BOX, RPN

pytestmark = pytest.mark.usefixtures("clean_catalog")

STOCK = ["MODEL.PROPOSAL_GENERATOR.NAME", "RPN", "MODEL.ROI_HEADS.NAME", "StandardROIHeads"]
WITHOUT_SAMPLING = [f"{RPN}.SAMPLING", "none", f"{RPN}.NORMALIZER.NAME", "EMAPosCount"]
SIGMOIDS = [f"{BOX}.CLS_LOSS.NAME", "FocalLoss", f"{BOX}.PRIOR_PROB", "0.01"]
PRECOMPUTED = ["MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"]


@pytest.fixture
def config(tmp_path):
    """A Faster R-CNN that trains and tests on a correct COCO data set of two classes."""
    write_coco(tmp_path)
    return write_two_stage_config(tmp_path, test=["cells"])


@pytest.fixture
def small_boxes(config):
    """The config with boxes of 9 px in place of the squares, which no anchor reaches."""
    shrink_squares(config.parent)
    return config


def run(config, *words):
    return main(["--config-file", str(config), *words])


@pytest.mark.parametrize("words", [[], STOCK], ids=["ours", "stock"])
def test_both_stages_are_measured_whoever_built_them(words, config, tmp_path, capsys):
    page = tmp_path / "page.html"
    # Detectron2's own, which need not be those of the config.
    thresholds = ["MODEL.RPN.IOU_THRESHOLDS", "[0.3, 0.7]"]
    assert run(config, "--output", str(page), *thresholds, *words) == 0
    output = capsys.readouterr().out
    assert "no errors, no warnings, 3 notes\n" in output and "CHK500" not in output
    assert re.search(r"^imbalance: \d+ negative anchors per positive; 2 classes", output, re.M)
    assert "boxes that an anchor overlaps with IoU >= 0.5: 4 of 4 (100.0 %)" in output
    assert "boxes with a positive anchor of IoU >= 0.7" in output
    assert re.search(r"\nRPN: [\d.]+ negatives per positive; random samples of 256", output)
    assert "loss_rpn_cls of the first step (all scores at the prior): about 0.693, " in output
    assert "ROI head: random samples of 128 proposals, at most 32 of them positive (1:3)" in output
    assert "loss_cls of the first step (all scores at the prior): about 1.1\n" in output
    text = page.read_text(encoding="utf-8")
    assert "<td>ROI head</td><td>SoftmaxFocalLoss(alpha=-1.0, gamma=0.0)</td>" in text
    assert text.count("<img ") == 3


def test_json_has_the_figures_of_both_stages(config, capsys):
    assert run(config, "--json", *SIGMOIDS) == 0
    figures = json.loads(capsys.readouterr().out)["training_set"]
    assert figures["initial_loss_rpn_cls"] == pytest.approx(0.6931, abs=1e-4)
    assert "initial_loss_cls" not in figures
    rpn, head = figures["stages"]
    assert rpn["negatives_per_positive"] > rpn["negatives_per_positive_of_sample"] > 1
    assert (rpn["sample_size"], rpn["max_positives"]) == (256, 128)
    assert head["negatives_per_positive"] is None
    low, high = head["initial_loss_cls_range"]
    assert 0 < low < high


def test_classes_without_anchors_are_named(small_boxes, capsys):
    assert run(small_boxes) == 1
    output = capsys.readouterr().out
    assert "CHK503 boxes that no anchor overlaps enough: 2 of 4 (50.0 %)" in output
    assert "worst class: square, which loses 100.0 % of its boxes" in output


def test_suggested_anchors_reach_more_boxes(small_boxes, tmp_path, capsys, caplog):
    out = tmp_path / "better.yaml"
    assert run(small_boxes, "--write", str(out), *SIGMOIDS) == 1
    printed = capsys.readouterr().out
    assert "with the settings that --write suggests" in printed
    cfg = load_config(out)
    assert min(map(min, cfg.MODEL.ANCHOR_GENERATOR.SIZES)) < 24
    alphas = cfg.MODEL.FOCAL_DET.ROI_BOX_HEAD.CLS_LOSS.ARGS.FocalLoss.alpha_per_class
    assert len(alphas) == 2 and len(cfg.MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS) == 2
    assert not cfg.MODEL.FOCAL_DET.CLS_LOSS.ARGS.FocalLoss.alpha_per_class
    assert not [x for x in caplog.records if x.levelno >= logging.WARNING]
    # A model of the written config is built and measured again.
    assert run(out) == 0
    assert "an anchor overlaps with IoU >= 0.5: 4 of 4 (100.0 %)" in capsys.readouterr().out


def test_suggested_level_is_one_of_the_rpn(small_boxes, tmp_path):
    file = small_boxes.parent / "coco.json"
    content = json.loads(file.read_text())
    first = content["annotations"][0]
    # So small that many lie between the anchors of the finest level.
    content["annotations"] = [
        {**first, "id": i + 1, "category_id": i % 2 + 1, "bbox": [x, y, 7, 7], "area": 49}
        for i, (x, y) in enumerate(itertools.product(range(1, 88, 11), range(2, 88, 9)))
    ]
    file.write_text(json.dumps(content))
    out = tmp_path / "finer.yaml"
    assert run(small_boxes, "--write", str(out)) == 1
    cfg = load_config(out)
    assert cfg.MODEL.RPN.IN_FEATURES == ["p2", "p3", "p4", "p5", "p6", "p7"]
    assert cfg.MODEL.RETINANET.IN_FEATURES[0] == "p3"
    generator = build_model(cfg).proposal_generator.anchor_generator
    assert generator.strides[0] == 4 and len(generator.cell_anchors) == 6


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ([], f"Not written: {BOX}.CLS_LOSS.NAME is SoftmaxFocalLoss, which takes no alpha"),
        (STOCK, "Not written: MODEL.ROI_HEADS.NAME is StandardROIHeads, which takes no numbers"),
    ],
)
def test_what_is_not_taken_is_not_written(words, reason, config, tmp_path, caplog):
    out = tmp_path / "better.yaml"
    assert run(config, "--write", str(out), *words) == 0
    assert reason in caplog.text
    cfg = load_config(out)
    assert not cfg.MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS
    assert run(out) == 0


@pytest.mark.parametrize(
    ("words", "place"),
    [
        (
            [*STOCK[:2], f"{RPN}.PRIOR_PROB", "0.01"],
            f"{RPN}.PRIOR_PROB 0.01: read by FocalRPN, but MODEL.PROPOSAL_GENERATOR.NAME is RPN.",
        ),
        (
            [*STOCK[2:], f"{BOX}.CLS_LOSS.NAME", "FocalLoss"],
            f"{BOX}.CLS_LOSS.NAME FocalLoss: read by FocalROIHeads or FocalRes5ROIHeads or "
            "FocalCascadeROIHeads, but MODEL.ROI_HEADS.NAME is StandardROIHeads.",
        ),
        (
            ["MODEL.FOCAL_DET.CLS_LOSS.NAME", "GHMCLoss"],
            "MODEL.FOCAL_DET.CLS_LOSS.NAME GHMCLoss: read by FocalRetinaNet, but "
            "MODEL.META_ARCHITECTURE is GeneralizedRCNN.",
        ),
    ],
)
def test_key_that_no_part_reads_is_a_warning(words, place, config, capsys):
    assert run(config, *words) == 1
    (line,) = [x for x in capsys.readouterr().out.splitlines() if "CHK007" in x]
    assert line.startswith("warning CHK007 key of MODEL.FOCAL_DET that the detector does not read")
    assert place in line and line.endswith("remove it, or choose a model that reads it.")


def test_stage_of_another_detector_is_a_warning(capsys):
    words = [f"{RPN}.PRIOR_PROB", "0.01", "--images", "1"]
    assert main(["--config-file", "digits/focal_retinanet_tiny.yaml", *words[2:], *words[:2]]) == 1
    output = capsys.readouterr().out
    assert f"{RPN}.PRIOR_PROB 0.01: read by FocalRPN, but MODEL.META_ARCHITECTURE is" in output


def test_first_loss_of_background_is_a_warning(config, capsys):
    assert run(config, *WITHOUT_SAMPLING) == 1
    output = capsys.readouterr().out
    (line,) = [x for x in output.splitlines() if "CHK506" in x]
    found = re.search(r"background: ([\d.]+) % of loss_rpn_cls ([\d.]+), with", line)
    assert 99 < float(found[1]) < 100 and float(found[2]) > 10
    assert f"{RPN}.PRIOR_PROB 0.5 and SAMPLING none" in line
    # What it advises is enough.
    prior = re.search(rf"set {RPN}\.PRIOR_PROB to about ([\d.]+),", line)[1]
    assert run(config, *WITHOUT_SAMPLING, f"{RPN}.PRIOR_PROB", prior) == 0
    assert "CHK506" not in capsys.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        [],
        [*WITHOUT_SAMPLING, f"{RPN}.PRIOR_PROB", "0.01"],
        [f"{RPN}.SAMPLING", "hard"],
    ],
)
def test_other_first_losses_are_fine(words, config, capsys):
    run(config, *words)
    assert "CHK506" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([f"{RPN}.SAMPLING", "none"], f"{RPN}: NORMALIZER SampleSize divides by"),
        ([f"{RPN}.SAMPLING", "some"], f"{RPN}: Unknown SAMPLING 'some'"),
        ([f"{RPN}.PRIOR_PROB", "1.5"], f"{RPN}: prior must be in (0, 1), got 1.5"),
        (
            [f"{RPN}.CLS_LOSS.NAME", "SoftmaxFocalLoss"],
            f"{RPN}: CLS_LOSS SoftmaxFocalLoss needs 2 logits, but the layer has only 1",
        ),
        ([f"{BOX}.CLS_LOSS.NAME", "FocalLos"], f"{BOX}.CLS_LOSS: Unknown classification loss"),
        ([f"{BOX}.NORMALIZER.NAME", "Samples"], f"{BOX}.NORMALIZER: Unknown loss normalizer"),
        ([f"{BOX}.CLS_LOSS.NAME", "FocalLoss"], f"{BOX}: PRIOR_PROB 0 starts all 2 scores"),
        (
            [*SIGMOIDS, "MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS", "[0.1]"],
            f"{BOX}: prior must have one value for each of the 2 classes, got 1",
        ),
        (
            [*SIGMOIDS, f"{BOX}.CLS_LOSS.ARGS.FocalLoss.alpha_per_class", "[0.1]"],
            f"{BOX}.CLS_LOSS: alpha_per_class",
        ),
        (
            [f"{BOX}.SAMPLING", "hard", f"{BOX}.CLS_LOSS.NAME", "GHMCLoss", *SIGMOIDS[2:]],
            f"{BOX}: SAMPLING hard ranks anchors by",
        ),
    ],
)
def test_refused_stage_is_one_line_with_its_key(words, message, config, capsys):
    assert run(config, *words) == 2
    lines = [x for x in capsys.readouterr().out.splitlines() if x.startswith("error")]
    assert len(lines) == 1
    assert f"CHK030 model that cannot be built: {message}" in lines[0]


def test_anchors_of_other_generators_are_not_measured(config, capsys):
    assert run(config, *PRECOMPUTED, "MODEL.LOAD_PROPOSALS", "True") == 0
    output = capsys.readouterr().out
    assert "CHK500 anchors not measured: MODEL.META_ARCHITECTURE GeneralizedRCNN" in output
    assert "training set:" not in output


@pytest.mark.parametrize(("base_lr", "is_found"), [(0.01, False), (2.0, True)])
def test_learning_rate_is_compared_with_that_of_two_stages(base_lr, is_found, config, capsys):
    run(config, "SOLVER.BASE_LR", str(base_lr))
    text = f"{base_lr} for 8 images. The linear rule (16 images at 0.02) gives about 0.01"
    assert (text in capsys.readouterr().out) == is_found
