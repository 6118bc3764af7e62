"""Every shipped config: safe yaml, equal to Detectron2's if it has one; builds, makes a step."""

from pathlib import Path

import pytest
import yaml
from detectron2 import model_zoo
from detectron2.config import LazyConfig, get_cfg, instantiate
from detectron2.modeling import build_model

from focal_det.model_zoo import get_config_file
from focal_det.modeling.build import read_settings
from tests.conftest import ROOT, make_step

YAMLS = sorted([*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("projects/*/configs/**/*.yaml")])
LAZY = sorted(ROOT.glob("configs/**/*.py"))
ZOO = {"Base-FocalRetinaNet.yaml": "Base-RetinaNet.yaml"}
for model in ("R_50_FPN_1x", "R_50_FPN_3x", "R_101_FPN_3x"):
    ZOO[f"COCO-Detection/focal_retinanet_{model}.yaml"] = f"COCO-Detection/retinanet_{model}.yaml"
TWO_STAGE_ZOO = {
    "Base-FocalRCNN-FPN.yaml": ("Base-RCNN-FPN.yaml", "StandardROIHeads"),
    "Base-FocalRCNN-C4.yaml": ("Base-RCNN-C4.yaml", "Res5ROIHeads"),
}


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def load(path: Path):
    cfg = get_cfg()
    cfg.merge_from_file(str(path), allow_unsafe=False)
    return cfg


@pytest.mark.parametrize("path", YAMLS, ids=name)
def test_it_is_safe_yaml_and_only_the_difference_to_its_base(path):
    content = yaml.safe_load(path.read_text())
    assert isinstance(content, dict) and "!!" not in path.read_text()
    if "_BASE_" in content:
        assert (path.parent / content["_BASE_"]).is_file()


@pytest.mark.parametrize("path", YAMLS, ids=name)
def test_it_builds_and_makes_a_step(path, monkeypatch):
    monkeypatch.setenv("FOCAL_DET_BCCD", "/nowhere")
    cfg = load(path)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.FOCAL_DET.DATASETS = []
    cfg.DATASETS.TRAIN = ()
    cfg.DATASETS.TEST = ()
    make_step(build_model(cfg), read_settings(cfg).num_classes)


@pytest.mark.parametrize("path", LAZY, ids=name)
def test_a_lazy_config_builds_and_makes_a_step(path):
    cfg = LazyConfig.load(str(path))
    assert {"model", "dataloader", "optimizer", "lr_multiplier", "train"} <= set(cfg)
    detector = cfg.model.get("roi_heads", cfg.model)
    make_step(instantiate(cfg.model), detector.num_classes)


@pytest.mark.parametrize(("ours", "theirs"), ZOO.items())
def test_it_equals_detectron2s_but_for_the_architecture(ours, theirs):
    cfg, stock = load(Path(get_config_file(ours))), get_cfg()
    stock.merge_from_file(model_zoo.get_config_file(theirs))
    assert cfg.MODEL.META_ARCHITECTURE == "FocalRetinaNet"
    cfg.MODEL.META_ARCHITECTURE = stock.MODEL.META_ARCHITECTURE
    assert cfg == stock


@pytest.mark.parametrize(("ours", "theirs"), TWO_STAGE_ZOO.items())
def test_two_stages_equal_detectron2s_but_for_our_parts(ours, theirs):
    cfg, stock = load(Path(get_config_file(ours))), get_cfg()
    stock.merge_from_file(model_zoo.get_config_file(theirs[0]))
    assert cfg.MODEL.PROPOSAL_GENERATOR.NAME == "FocalRPN"
    cfg.MODEL.PROPOSAL_GENERATOR.NAME = "RPN"
    cfg.MODEL.ROI_HEADS.NAME = theirs[1]
    assert cfg == stock


@pytest.mark.parametrize("depth", [50, 101])
def test_the_lazy_twin_has_the_values_of_the_yaml(depth):
    cfg = load(Path(get_config_file(f"COCO-Detection/focal_retinanet_R_{depth}_FPN_1x.yaml")))
    lazy = LazyConfig.load(get_config_file(f"COCO-Detection/focal_retinanet_R_{depth}_FPN_1x.py"))
    assert lazy.model.backbone.bottom_up.stages.depth == cfg.MODEL.RESNETS.DEPTH
    assert lazy.train.init_checkpoint == cfg.MODEL.WEIGHTS
    assert lazy.train.max_iter == cfg.SOLVER.MAX_ITER and lazy.optimizer.lr == cfg.SOLVER.BASE_LR
    assert (lazy.model.cls_loss.alpha, lazy.model.cls_loss.gamma) == (0.25, 2.0)


def test_an_unknown_config_names_the_nearest():
    with pytest.raises(
        FileNotFoundError, match=r"Did you mean 'COCO-Detection/focal_retinanet_R_50_FPN_1x.yaml'"
    ):
        get_config_file("COCO-Detection/focal_retinanet_R50_FPN_1x.yaml")
