"""What programs read of a config: anchors, stages, numbers per class, and keys nobody reads."""

from pathlib import Path

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.proposal_generator import RPN

from focal_det.env import load_config
from focal_det.modeling.parts import find_unread
from focal_det.modeling.roi_heads import FocalROIHeads
from focal_det.modeling.settings import read_anchors, read_class_settings, read_stages
from tests.conftest import ROOT

from .two_stage import (
    BOX,
    C4,
    CASCADE,
    FASTER,
    WITHOUT_SAMPLING,
    make_two_stage_cfg,
)
from .two_stage import (
    RPN as RPN_KEY,
)

SHIPPED = sorted(str(x) for x in (ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("is_ours", [True, False])
@pytest.mark.parametrize("config_file", [FASTER, C4, CASCADE])
def test_both_stages_are_known_whoever_built_them(config_file, is_ours):
    cfg = make_two_stage_cfg(config_file, is_ours=is_ours)
    rpn, head = read_stages(cfg)
    assert (rpn.loss_name, rpn.num_classes, rpn.sample_size, rpn.max_positives) == (
        "loss_rpn_cls",
        1,
        256,
        128,
    )
    loss_name = "loss_cls_stage0" if config_file == CASCADE else "loss_cls"
    assert (head.loss_name, head.num_classes, head.sample_size, head.max_positives) == (
        loss_name,
        5,
        64,
        16,
    )
    assert rpn.sampling == head.sampling == "random"
    # The same cross entropy, divisor and bias.
    assert [repr(x.loss.cls_loss) for x in (rpn, head)] == [
        "FocalLoss(alpha=-1.0, gamma=0.0)",
        "SoftmaxFocalLoss(alpha=-1.0, gamma=0.0)",
    ]
    assert [type(x.loss.normalizer).__name__ for x in (rpn, head)] == ["SampleSize", "SampleCount"]
    assert rpn.loss.normalizer.value == 256
    assert rpn.loss.bias.tolist() == [0] and head.loss.bias.tolist() == [0] * 6
    assert [x.key for x in (rpn, head)] == ([RPN_KEY, BOX] if is_ours else ["", ""])


def test_anchors_of_an_rpn_are_labelled_by_its_own_keys():
    anchors = read_anchors(make_two_stage_cfg(FASTER, {"MODEL.RPN.BOUNDARY_THRESH": 3}))
    assert anchors.level_names == ["p2", "p3", "p4", "p5", "p6"]
    assert anchors.level_names_key == "MODEL.RPN.IN_FEATURES"
    matcher = anchors.build_matcher()
    assert matcher.thresholds[1:-1] == [0.3, 0.7] and matcher.allow_low_quality_matches
    assert (anchors.reach_thresh, anchors.boundary_thresh) == (0.5, 3)


@pytest.mark.parametrize(
    "keys",
    [
        {"MODEL.PROPOSAL_GENERATOR.NAME": "PrecomputedProposals"},
        {"MODEL.PROPOSAL_GENERATOR.NAME": "RRPN"},
        {"MODEL.META_ARCHITECTURE": "SemanticSegmentor"},
        {"MODEL.META_ARCHITECTURE": "Unknown"},
    ],
)
def test_anchors_of_other_detectors_are_not_known(keys):
    assert read_anchors(make_two_stage_cfg(FASTER, keys, is_ours=False)) is None


def test_loss_of_a_strangers_part_is_not_known(monkeypatch):
    """A subclass of Detectron2's part may have any loss, one of ours has ours."""

    class Theirs(ROI_HEADS_REGISTRY.get("StandardROIHeads")):
        pass

    class Own(FocalROIHeads):
        pass

    for part in (Theirs, Own):
        monkeypatch.setitem(ROI_HEADS_REGISTRY._obj_map, part.__name__, part)
    _, theirs = read_stages(make_two_stage_cfg(FASTER, {"MODEL.ROI_HEADS.NAME": "Theirs"}))
    _, own = read_stages(make_two_stage_cfg(FASTER, {"MODEL.ROI_HEADS.NAME": "Own"}))
    assert theirs.loss is None and theirs.sample_size == 64 and theirs.key == ""
    assert own.loss is not None and own.key == BOX


def test_loss_that_main_switches_on_is_not_known():
    cfg = make_two_stage_cfg(FASTER, is_ours=False)
    cfg.MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE = True
    _, head = read_stages(cfg)
    assert head.loss is None


def test_stage_without_sampling_has_no_sample():
    rpn, head = read_stages(make_two_stage_cfg(FASTER, _with_sigmoids()))
    assert [x.sampling for x in (rpn, head)] == ["none", "none"]
    assert rpn.sample_size == head.sample_size == rpn.max_positives == 0
    assert torch.allclose(rpn.loss.bias.sigmoid(), torch.tensor(0.01))
    assert len(head.loss.bias) == 5


def _with_sigmoids(**more):
    return {**WITHOUT_SAMPLING, f"{BOX}.CLS_LOSS.NAME": "FocalLoss", **more}


def test_numbers_per_class_belong_to_the_box_head():
    classes = read_class_settings(make_two_stage_cfg(FASTER, _with_sigmoids()))
    args = f"{BOX}.CLS_LOSS.ARGS.FocalLoss"
    assert classes.alpha_key == f"{args}.alpha_per_class"
    assert classes.scalar_alpha_key == f"{args}.alpha" and classes.alpha == 0.25
    assert classes.prior_key == "MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS" and classes.prior == 0.01
    assert classes.total_prior == pytest.approx(0.05) and not classes.missing


def test_softmax_has_one_prior_in_all_and_no_alphas():
    keys = {f"{BOX}.PRIOR_PROB": 0.1}
    classes = read_class_settings(make_two_stage_cfg(FASTER, keys))
    assert classes.alpha_key == "" and classes.prior_key
    assert classes.total_prior == pytest.approx(0.1)
    (reason,) = classes.missing
    assert reason.startswith(f"{BOX}.CLS_LOSS.NAME is SoftmaxFocalLoss, which takes no alpha")
    assert "FocalLoss" in reason.split(":")[1]


@pytest.mark.parametrize("is_ours", [True, False])
def test_defaults_have_no_numbers_per_class(is_ours):
    classes = read_class_settings(make_two_stage_cfg(FASTER, is_ours=is_ours))
    assert classes.alpha_key == classes.prior_key == ""
    text = "; ".join(classes.missing)
    if is_ours:
        assert f"{BOX}.PRIOR_PROB is 0" in text
    else:
        assert "MODEL.ROI_HEADS.NAME is StandardROIHeads, which takes no numbers" in text
        assert "FocalROIHeads" in text


RETINANET = "COCO-Detection/focal_retinanet_R_50_FPN_1x.yaml"
OURS = "digits/faster_rcnn_tiny.yaml"
STOCK_RPN = ["MODEL.PROPOSAL_GENERATOR.NAME", "RPN"]
STOCK_HEADS = ["MODEL.ROI_HEADS.NAME", "StandardROIHeads"]


@pytest.mark.parametrize(
    ("config_file", "words", "reader", "part"),
    [
        (OURS, [*STOCK_RPN, f"{RPN_KEY}.PRIOR_PROB", "0.01"], "FocalRPN", "RPN"),
        (OURS, [*STOCK_HEADS, f"{BOX}.SAMPLING", "none"], "FocalROIHeads", "StandardROIHeads"),
        (
            OURS,
            [*STOCK_HEADS, "MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS", "[0.1]"],
            "FocalROIHeads",
            "StandardROIHeads",
        ),
        (
            OURS,
            ["MODEL.FOCAL_DET.CLS_LOSS.ARGS.FocalLoss.gamma_per_class", "[1.0]"],
            "FocalRetinaNet",
            "GeneralizedRCNN",
        ),
        (
            OURS,
            ["MODEL.FOCAL_DET.LOW_QUALITY_MATCHES", "False"],
            "FocalRetinaNet",
            "GeneralizedRCNN",
        ),
        (RETINANET, [f"{RPN_KEY}.SAMPLING", "none"], "FocalRPN", "FocalRetinaNet"),
        (
            RETINANET,
            ["MODEL.META_ARCHITECTURE", "RetinaNet", "MODEL.FOCAL_DET.CLS_LOSS.NAME", "GHMCLoss"],
            "FocalRetinaNet",
            "RetinaNet",
        ),
        (
            RETINANET,
            ["MODEL.FOCAL_DET.TORCHVISION_BACKBONE", "resnet18"],
            "build_torchvision_fpn_backbone",
            "build_retinanet_resnet_fpn_backbone",
        ),
    ],
)
def test_setting_that_no_part_reads_is_found(config_file, words, reader, part):
    (unread,) = find_unread(load_config(config_file, words), get_cfg())
    assert list(unread.values) == [words[-2]]
    assert reader in unread.readers and unread.part == part


@pytest.mark.parametrize(
    ("config_file", "words"),
    [
        (OURS, [f"{RPN_KEY}.PRIOR_PROB", "0.01", f"{BOX}.SAMPLING", "hard"]),
        (OURS, ["MODEL.FOCAL_DET.TELEMETRY_PERIOD", "0"]),
        (RETINANET, ["MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS", "[0.1]"]),
        (
            RETINANET,
            [
                *("MODEL.BACKBONE.NAME", "build_torchvision_fpn_backbone"),
                *("MODEL.FOCAL_DET.TORCHVISION_BACKBONE", "resnet18"),
            ],
        ),
        # What another architecture reads is not known.
        (OURS, ["MODEL.META_ARCHITECTURE", "ProposalNetwork", f"{BOX}.SAMPLING", "hard"]),
    ],
)
def test_setting_that_a_part_reads_is_not_found(config_file, words):
    assert find_unread(load_config(config_file, words), get_cfg()) == []


@pytest.mark.parametrize("config_file", SHIPPED, ids=lambda x: Path(x).name)
def test_shipped_configs_set_nothing_in_vain(config_file):
    assert find_unread(load_config(config_file), get_cfg()) == []


def test_generator_of_a_subclass_keeps_its_anchors(monkeypatch):
    from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY

    class Theirs(RPN):
        pass

    monkeypatch.setitem(PROPOSAL_GENERATOR_REGISTRY._obj_map, "Theirs", Theirs)
    cfg = make_two_stage_cfg(FASTER, {"MODEL.PROPOSAL_GENERATOR.NAME": "Theirs"})
    assert read_anchors(cfg) is not None
    assert read_stages(cfg)[0].loss is None
