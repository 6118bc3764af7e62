"""MODEL.FOCAL_DET: what it has, how it is set, and what a typo says."""

import pytest
import yaml
from detectron2.config import get_cfg

from focal_det.config import add_focal_det_config, merge_file, merge_options
from focal_det.env import load_config
from focal_det.losses import FocalLoss
from focal_det.losses.normalizers import GlobalPosCount
from focal_det.messages import UnknownNameError
from focal_det.model_zoo import get_config_file
from focal_det.modeling.build import build_cls_loss, build_normalizer


def test_gamma_alpha_and_prior_are_the_keys_of_detectron2(make_cfg):
    cfg = make_cfg("MODEL.RETINANET.FOCAL_LOSS_GAMMA", 1.5, "MODEL.RETINANET.FOCAL_LOSS_ALPHA", 0.5)
    loss = build_cls_loss(cfg)
    assert isinstance(loss, FocalLoss) and (loss.gamma, loss.alpha) == (1.5, 0.5)


def test_a_shipped_config_is_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("digits/focal_retinanet_tiny.yaml").OUTPUT_DIR == "./output/digits"
    (tmp_path / "digits").mkdir()
    (tmp_path / "digits" / "focal_retinanet_tiny.yaml").write_text("OUTPUT_DIR: mine\n")
    assert load_config("digits/focal_retinanet_tiny.yaml").OUTPUT_DIR == "mine"


def test_a_config_that_is_nowhere_names_both_places(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as raised:
        load_config("digits/focal_retinanet_tony.yaml")
    shipped = get_config_file("Base-FocalRetinaNet.yaml").rsplit("/", 1)[0]
    for words in (str(tmp_path), shipped, "Did you mean 'digits/focal_retinanet_tiny.yaml'?"):
        assert words in str(raised.value)


def test_the_node_is_small():
    def count(node):
        return sum(
            1 if not hasattr(v, "items") else count(v) for k, v in node.items() if k != "ARGS"
        )

    assert count(get_cfg().MODEL.FOCAL_DET) <= 16


def test_arguments_are_set_from_the_command_line(make_cfg):
    cfg = make_cfg("MODEL.FOCAL_DET.NORMALIZER.ARGS.EMAPosCount.momentum", 0.5)
    assert build_normalizer(cfg).momentum == 0.5
    assert isinstance(
        build_normalizer(make_cfg("MODEL.FOCAL_DET.NORMALIZER.NAME", "GlobalPosCount")),
        GlobalPosCount,
    )


def test_only_the_entry_of_the_name_is_read(make_cfg):
    cfg = make_cfg("MODEL.FOCAL_DET.NORMALIZER.NAME", "GlobalPosCount")
    cfg.MODEL.FOCAL_DET.NORMALIZER.ARGS.EMAPosCount.momentum = 7.0
    assert isinstance(build_normalizer(cfg), GlobalPosCount)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        (
            {"NAME": "GlobalPoscount"},
            r"FOCAL_DET\.NORMALIZER: Unknown loss normalizer .*Did you mean 'GlobalPosCount'",
        ),
        (
            {"ARGS": {"EMAPosCuont": {"momentum": 0.5}}},
            r"NORMALIZER\.ARGS 'EMAPosCuont'\. Did you mean 'EMAPosCount'",
        ),
        (
            {"ARGS": {"EMAPosCount": {"momentun": 0.5}}},
            r"Unknown argument of EMAPosCount 'momentun'.*'momentum'",
        ),
        (
            {"ARGS": {"EMAPosCount": {"momentum": 1.5}}},
            r"MODEL\.FOCAL_DET\.NORMALIZER: momentum must be in \[0, 1\), got 1.5",
        ),
    ],
)
def test_a_typo_in_a_file_names_key_and_nearest_match(make_cfg, tmp_path, node, message):
    file = tmp_path / "typo.yaml"
    file.write_text(yaml.safe_dump({"MODEL": {"FOCAL_DET": {"NORMALIZER": node}}, "VERSION": 2}))
    cfg = make_cfg()
    cfg.merge_from_file(str(file))
    with pytest.raises((KeyError, ValueError), match=message):
        build_normalizer(cfg)


def test_a_typo_on_the_command_line_fails(make_cfg):
    with pytest.raises((KeyError, AssertionError), match="momentun"):
        make_cfg("MODEL.FOCAL_DET.NORMALIZER.ARGS.EMAPosCount.momentun", 0.5)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (
            "MODEL.FOCAL_DET.CLS_LOSS.ARGS.OHEMLoss.bach",
            r"key of MODEL\.FOCAL_DET\.CLS_LOSS\.ARGS\.OHEMLoss 'bach'\. Did you mean 'batch'",
        ),
        (
            "MODEL.FOCAL_DET.CLS_LOSS.ARGS.OHEMLos.batch",
            r"ARGS 'OHEMLos'\. Did you mean 'OHEMLoss'",
        ),
        (
            "MODEL.RETINANET.FOCAL_LOS_GAMMA",
            r"key of MODEL\.RETINANET 'FOCAL_LOS_GAMMA'\. Did you mean 'FOCAL_LOSS_GAMMA'",
        ),
        ("MODLE.DEVICE", r"key of the config 'MODLE'\. Did you mean 'MODEL'"),
        ("SOLVER.BASE_LR.x", r"key of SOLVER\.BASE_LR 'x'"),
    ],
)
def test_a_typo_in_options_names_the_nearest_key(make_cfg, key, message):
    with pytest.raises(KeyError, match=message):
        merge_options(make_cfg(), [key, "1"])


def test_options_without_a_typo_are_merged(make_cfg):
    cfg = make_cfg()
    merge_options(
        cfg, ["SOLVER.MAX_ITER", "7", "MODEL.FOCAL_DET.CLS_LOSS.ARGS.OHEMLoss.batch", "64"]
    )
    assert (cfg.SOLVER.MAX_ITER, cfg.MODEL.FOCAL_DET.CLS_LOSS.ARGS.OHEMLoss.batch) == (7, 64)


def test_adding_the_node_to_a_config_by_hand():
    cfg = get_cfg()
    del cfg.MODEL["FOCAL_DET"]
    add_focal_det_config(cfg)
    assert cfg.MODEL.FOCAL_DET == get_cfg().MODEL.FOCAL_DET


def test_a_dumped_config_reads_back_equal(make_cfg, tmp_path):
    cfg = make_cfg("MODEL.FOCAL_DET.DATASETS", [{"name": "a", "format": "coco"}])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    again = get_cfg()
    again.merge_from_file(str(tmp_path / "config.yaml"), allow_unsafe=False)
    assert again.MODEL.FOCAL_DET == cfg.MODEL.FOCAL_DET


def test_an_unknown_box_loss_names_the_known_ones(make_cfg):
    from detectron2.modeling import build_model

    with pytest.raises(ValueError, match=r"BBOX_REG_LOSS_TYPE.*Did you mean 'giou'"):
        build_model(make_cfg("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "gioi"))


def test_config_of_a_newer_detectron2_is_named(make_cfg, tmp_path):
    file = tmp_path / "newer.yaml"
    file.write_text("VERSION: 9\n")
    with pytest.raises(ValueError, match=r"newer\.yaml: Cannot merge a v9 config into a v2 config"):
        merge_file(make_cfg(), str(file))


def test_configs_that_are_based_on_each_other_are_named(make_cfg, tmp_path):
    for name, base in (("a", "b"), ("b", "a")):
        (tmp_path / f"{name}.yaml").write_text(f"_BASE_: {base}.yaml\n")
    with pytest.raises(ValueError, match=r"a\.yaml: its _BASE_ files are based on each other"):
        merge_file(make_cfg(), str(tmp_path / "a.yaml"))


def test_renamed_key_in_a_file_is_named(make_cfg, tmp_path):
    cfg = make_cfg()
    cfg.register_renamed_key("SOLVER.RATE", "SOLVER.BASE_LR")
    file = tmp_path / "old.yaml"
    file.write_text("SOLVER:\n  RATE: 0.1\n")
    with pytest.raises(UnknownNameError, match=r"old\.yaml: .*SOLVER\.RATE was renamed"):
        merge_file(cfg, str(file))
