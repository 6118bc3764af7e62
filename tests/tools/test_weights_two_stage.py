"""`focal-det weights` of two-stage detectors: alpha and pi of the box head, where it takes them."""

import json
import logging
import re

import cv2
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from focal_det.tools.weights import main
from tests.conftest import make_batch
from tests.data.make_data import write_coco, write_two_stage_config
from tests.modeling.two_stage import BOX

pytestmark = pytest.mark.usefixtures("clean_catalog")

ALPHA_KEY = f"{BOX}.CLS_LOSS.ARGS.FocalLoss.alpha"
SIGMOIDS = [f"{BOX}.CLS_LOSS.NAME", "FocalLoss", f"{BOX}.PRIOR_PROB", "0.01"]
STOCK = ["MODEL.ROI_HEADS.NAME", "StandardROIHeads"]


@pytest.fixture
def base(tmp_path):
    """The config of a Faster R-CNN for two circles and one square."""
    write_coco(tmp_path)
    content = json.loads((tmp_path / "coco.json").read_text())
    del content["annotations"][1]
    (tmp_path / "coco.json").write_text(json.dumps(content))
    return write_two_stage_config(tmp_path, test=[])


def run(base, *words):
    """Run the program; return the config it wrote."""
    file = base.parent / "out" / "weights.yaml"
    assert main(["--config-file", str(base), "--output", str(file), *words]) == 0
    cfg = get_cfg()
    cfg.merge_from_file(str(file), allow_unsafe=False)
    return cfg


def get_alphas(cfg):
    return list(cfg.MODEL.FOCAL_DET.ROI_BOX_HEAD.CLS_LOSS.ARGS.FocalLoss.alpha_per_class)


def test_written_config_builds_a_box_head_that_trains(base, caplog):
    cfg = run(base, *SIGMOIDS)
    # Square root, two circles and one square: scale = 0.25 * 3 / (sqrt(2) + 1).
    assert get_alphas(cfg) == pytest.approx([0.2197, 0.3107], abs=5e-5)
    # In all 2 * 0.01, two thirds of it circles.
    priors = list(cfg.MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS)
    assert priors == [0.01333, 0.006667]
    assert not [x for x in caplog.records if x.levelno >= logging.WARNING]
    model = build_model(cfg).train()
    layers = model.roi_heads.box_predictor
    assert layers.stage_losses.cls_loss.alpha_per_class.tolist() == pytest.approx(get_alphas(cfg))
    starts = layers.cls_score.bias.detach()[:2].sigmoid()
    assert torch.allclose(starts, torch.tensor(priors), rtol=1e-4)
    with EventStorage():
        losses = model(make_batch([[16, 16, 52, 52], [60, 60, 100, 100]], num_classes=2))
    assert all(x.isfinite() for x in losses.values())


def test_softmax_gets_priors_with_the_sum_of_its_one(base, capsys, caplog):
    cfg = run(base, f"{BOX}.PRIOR_PROB", "0.3")
    assert list(cfg.MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS) == [0.2, 0.1]
    assert get_alphas(cfg) == []
    output = capsys.readouterr().out
    assert "alpha" not in output
    assert "pi: in proportion to the objects, with the sum 0.3 of PRIOR_PROB 0.3" in output
    assert f"Not written: {BOX}.CLS_LOSS.NAME is SoftmaxFocalLoss" in caplog.text
    build_model(cfg)
    # Objects and pi, without a panel of alphas.
    assert cv2.imread(str(base.parent / "out" / "weights.png")).shape[1] == 1320


def test_scalar_alpha_and_options_are_followed(base, capsys):
    cfg = run(base, "--method", "inverse", *SIGMOIDS, ALPHA_KEY, "0.4")
    # Inverse frequency: 2 alpha_0 = alpha_1 = 0.4 * 3 / 2.
    assert get_alphas(cfg) == [0.3, 0.6]
    assert f"alpha: inverse; mean over the objects 0.4 ({ALPHA_KEY})" in capsys.readouterr().out


def test_no_anchor_is_labelled(base, monkeypatch):
    """Proposals are not anchors, and labelling takes minutes."""

    def fail(*args):
        raise AssertionError("anchors were labelled")

    monkeypatch.setattr("focal_det.imbalance.anchors.match_anchors", fail)
    run(base, *SIGMOIDS, "MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            [],
            f"no alpha and no pi to write: {BOX}.CLS_LOSS.NAME is SoftmaxFocalLoss, which takes no "
            rf"alpha per class: choose FocalLoss.*; {BOX}.PRIOR_PROB is 0, a bias of 0",
        ),
        (
            STOCK,
            "no alpha and no pi to write: MODEL.ROI_HEADS.NAME is StandardROIHeads, which takes no "
            "numbers per class: choose FocalROIHeads or FocalRes5ROIHeads",
        ),
        (
            ["MODEL.META_ARCHITECTURE", "SemanticSegmentor"],
            "MODEL.META_ARCHITECTURE is SemanticSegmentor: only RetinaNets and the ROI heads",
        ),
        (
            [*SIGMOIDS, ALPHA_KEY, "-1.0"],
            rf"the scalar alpha \({ALPHA_KEY}\) must be in \(0, 0\.95\], got -1",
        ),
        (
            [f"{BOX}.CLS_LOSS.NAME", "FocalLoss"],
            f"{BOX}: PRIOR_PROB 0 starts all 2 scores of FocalLoss at 0.5",
        ),
        (
            [*SIGMOIDS, "MODEL.ROI_HEADS.NUM_CLASSES", "3"],
            r"2 classes \(circle, square\), but MODEL\.ROI_HEADS\.NUM_CLASSES is 3",
        ),
    ],
)
def test_what_cannot_be_written_is_named(words, message, base, capsys):
    with pytest.raises(SystemExit) as stop:
        run(base, *words)
    assert stop.value.code == 2
    assert re.search(message, capsys.readouterr().err)
    assert not (base.parent / "out").exists()
