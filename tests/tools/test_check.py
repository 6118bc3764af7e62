"""`focal-det check`: faults of data and config, an exit code, a page and a corrected copy."""

import base64
import functools
import json
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from focal_det.check.run import load_checked_config, run_checks
from focal_det.engine.trainer import Trainer
from focal_det.env import load_config, setup_environment
from focal_det.imbalance import advice
from focal_det.imbalance.anchors import build_anchor_setup, label_record
from focal_det.imbalance.describe import describe
from focal_det.imbalance.first_loss import compute_first_loss
from focal_det.model_zoo import get_config_file
from focal_det.modeling.settings import read_stages
from focal_det.registry import CLS_LOSS_REGISTRY
from focal_det.report.detections import draw_boxes, make_ground_truth_figure
from focal_det.tools.__main__ import main as focal_det_main
from focal_det.tools.check import main
from focal_det.tools.train import main as train
from tests.data.make_data import (
    CLASSES,
    load_records,
    shrink_squares,
    write_annotation,
    write_coco,
    write_voc,
)

pytestmark = pytest.mark.usefixtures("clean_catalog")


@pytest.fixture
def config(tmp_path):
    """A config that trains and tests on a correct COCO data set of two classes."""
    write_coco(tmp_path)
    block = {
        "name": "cells",
        "format": "coco",
        "json": str(tmp_path / "coco.json"),
        "images": str(tmp_path / "images"),
    }
    return write_config(tmp_path, block)


def write_config(folder, block, **changes):
    model = {"RETINANET": {"NUM_CLASSES": 2}, "FOCAL_DET": {"DATASETS": [block]}}
    content = {"_BASE_": get_config_file("digits/focal_retinanet_tiny.yaml"), "MODEL": model}
    content["DATASETS"] = {"TRAIN": [block["name"]], "TEST": [block["name"]]}
    (folder / "config.yaml").write_text(yaml.safe_dump({**content, **changes}))
    return folder / "config.yaml"


def run(config, *words):
    return main(["--config-file", str(config), *words])


def read_pictures(page):
    """The pictures in a page, (H, W, 3) each."""
    codes = re.findall(r'src="data:image/png;base64,([^"]+)"', page.read_text(encoding="utf-8"))
    return [cv2.imdecode(np.frombuffer(base64.b64decode(x), np.uint8), 1) for x in codes]


def test_correct_data_and_config_pass(config, capsys):
    assert run(config) == 0
    assert "no errors, no warnings, 3 notes\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (
            ["MODEL.RETINANET.NUM_CLASSES", "1"],
            "cells: 2 classes (circle, square), MODEL.RETINANET.NUM_CLASSES is 1",
            2,
        ),
        (["MODEL.RETINANET.NUM_CLASSES", "7"], "Set MODEL.RETINANET.NUM_CLASSES to 2", 2),
        (
            ["DATASETS.TEST", "('cels',)"],
            "the data set. Did you mean 'cells'",
            2,
        ),
        (["SOLVER.BASE_LR", "float('nan')"], "SOLVER.BASE_LR", 2),
        (["SOLVER.STEPS", "(5000,)"], "[5000] with SOLVER.MAX_ITER 1100", 1),
        (
            ["SOLVER.WARMUP_ITERS", "2000"],
            "CHK013 warm-up longer than training: SOLVER.WARMUP_ITERS 2000",
            1,
        ),
        (["DATASETS.TRAIN", "()"], "CHK004 no training set", 2),
        (["MODEL.WEIGHTS", "none.pth"], "weights that do not exist: none.pth", 2),
        (
            ["MODEL.WEIGHTS", "focal-det://digits/focal_retinanet"],
            "Did you mean 'digits/focal_retinanet_tiny.yaml'",
            2,
        ),
        (
            ["MODEL.WEIGHTS", "focal-det://digits/focal_retinanet_tiny#backbone"],
            "weights for a part of the model: focal-det://digits/focal_retinanet_tiny#backbone: ",
            1,  # the learning rate is high for trained weights
        ),
        (
            ["MODEL.FOCAL_DET.NORMALIZER.NAME", "EMA"],
            "CHK030 model that cannot be built: MODEL.FOCAL_DET.NORMALIZER: Unknown",
            2,
        ),
        (["MODEL.META_ARCHITECTURE", "FocalRetina"], "Did you mean 'FocalRetinaNet'", 2),
        (
            ["MODEL.PIXEL_STD", "[float('nan'), 1.0, 1.0]"],
            "non-finite number: MODEL.PIXEL_STD: [nan, 1.0, 1.0]",
            2,
        ),
        (
            ["MODEL.PIXEL_MEAN", "[0.5, 0.5, 0.5]"],
            "pixel mean for values from 0 to 1: MODEL.PIXEL_MEAN [0.5",
            1,
        ),
        (
            [
                *("MODEL.WEIGHTS", "torchvision://MobileNet_V2_Weights.IMAGENET1K_V1"),
                *("MODEL.BACKBONE.NAME", "build_torchvision_fpn_backbone"),
            ],
            "INPUT.FORMAT BGR, MODEL.PIXEL_MEAN [127.5, 127.5, 127.5], PIXEL_STD [64.0, 64.0, "
            "64.0]. Set INPUT.FORMAT RGB, MODEL.PIXEL_MEAN [123.675, 116.28, 103.53] and "
            "MODEL.PIXEL_STD [58.395, 57.12, 57.375]",
            1,
        ),
        (["SOLVER.CLIP_GRADIENTS.NORM_TYPE", "float('inf')"], "no errors, no warnings", 0),
        (
            ["SOLVER.STEPS", "(5000,)", "SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"],
            "no errors, no warnings",
            0,
        ),
        (["SOLVER.BASE_LR", "10.0"], "10.0 for 8 images", 1),
        (["SOLVER.BASE_LR", "-0.01"], "number that must be positive: SOLVER.BASE_LR -0.01", 2),
        (["SOLVER.IMS_PER_BATCH", "0"], "number that must be positive: SOLVER.IMS_PER_BATCH 0", 2),
        (
            ["MODEL.DEVICE", "cuda"],
            "no GPU on this machine: MODEL.DEVICE cuda. "
            "Training here would stop: set MODEL.DEVICE cpu",
            0,
        ),
        (
            ["MODEL.ROI_HEADS.NUM_CLASSES", "2"],
            "NUM_CLASSES 2. A RetinaNet does not read it. Set keys of MODEL.RETINANET instead",
            1,
        ),
    ],
)
def test_faulty_config_is_reported(config, words, message, code, capsys):
    if words[0] == "MODEL.DEVICE" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    if "float(" in words[1]:  # which the command line cannot say
        *parents, leaf = words[0].split(".")
        content = yaml.safe_load(config.read_text())
        functools.reduce(lambda node, part: node.setdefault(part, {}), parents, content)[leaf] = (
            eval(words[1])
        )
        config.write_text(yaml.safe_dump(content))
        words = []
    assert run(config, *words) == code
    assert message in capsys.readouterr().out


def test_training_needs_a_gpu_and_a_folder(config, capsys, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        train(
            [
                "--config-file",
                str(config),
                "MODEL.DEVICE",
                "cuda",
                "OUTPUT_DIR",
                str(tmp_path / "file" / "out"),
            ]
        )
    output = capsys.readouterr()
    assert stop.value.code == 2 and "--no-check" in output.err
    assert (
        "error   CHK020 no GPU on this machine" in output.out
        and "error   CHK021 folder that cannot be created" in output.out
    )


def test_weights_are_loaded_on_the_cpu(config, weights, capsys):
    assert (
        run(
            config,
            "MODEL.WEIGHTS",
            str(weights[0]),
            "MODEL.DEVICE",
            "cuda",
            "SOLVER.BASE_LR",
            "0.005",
        )
        == 0
    )
    assert "weights that" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["SOLVER.BASE_LR", "10"], "config key: SOLVER.BASE_LR: write 10.0"),
        (["DATASETS.TRAIN", "cells"], "config key: DATASETS.TRAIN: write \"('cells',)\""),
    ],
)
def test_value_of_the_wrong_type_is_corrected_in_words(config, words, message, capsys):
    with pytest.raises(SystemExit):
        run(config, *words)
    assert message in capsys.readouterr().err


def test_crash_has_its_own_exit_code(config, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise RuntimeError("not foreseen")

    monkeypatch.setattr("focal_det.tools.check.run_checks", fail)
    with pytest.raises(SystemExit) as stop:
        run(config)
    assert stop.value.code == 3
    error = capsys.readouterr().err
    assert "RuntimeError: not foreseen" in error
    assert "focal-det check crashed. This is a bug in focal_det: please report it" in error


def test_forgotten_data_set_file_is_the_first_hint(config, monkeypatch, capsys):
    assert run(config, "DATASETS.TEST", "('blood_cells_test',)") == 2
    output = capsys.readouterr().out
    hint = output.index("FOCAL_DET_DATASETS is not set")
    assert "DATASETS.TEST: Unknown data set 'blood_cells_test'. FOCAL_DET_DATASETS" in output
    assert hint < output.index("Known: ") and hint < 200
    file = config.parent / "sets.yaml"
    file.write_text("DATASETS: []")
    monkeypatch.setenv("FOCAL_DET_DATASETS", str(file))
    assert run(config, "DATASETS.TEST", "('cels',)") == 2
    output = capsys.readouterr().out
    assert output.index("Did you mean 'cells'") < output.index(f"FOCAL_DET_DATASETS ({file})")


def test_unknown_data_set_argument_has_the_hint_first(config, capsys):
    with pytest.raises(SystemExit):
        run(config, "--dataset", "blood_cells_test")
    error = capsys.readouterr().err
    assert "--dataset: Unknown data set 'blood_cells_test'. FOCAL_DET_DATASETS" in error
    assert error.index("FOCAL_DET_DATASETS is not set") < error.index("Known: ")


@pytest.mark.parametrize("key", ["DATASETS.TEST", "DATASETS.TRAIN"])
def test_one_data_set_is_checked_without_the_others(key, config, capsys):
    assert run(config, "--dataset", "cells", key, "('nobodys',)") == 0
    assert "nobodys" not in capsys.readouterr().out


def test_one_data_set_ignores_evaluators_of_others(config, tmp_path, capsys):
    register("own", load_records(tmp_path), evaluator_type="citiscapes")
    assert run(config, "--dataset", "cells", "DATASETS.TEST", "('own',)") == 0


@pytest.mark.parametrize("place", ["config", "file"])
def test_one_data_set_ignores_wrong_blocks_of_others(place, config, monkeypatch, capsys):
    content = yaml.safe_load(config.read_text())
    blocks = content["MODEL"]["FOCAL_DET"]["DATASETS"]
    wrong = {**blocks[0], "name": "wrong", "json": "nowhere.json"}
    if place == "config":
        blocks.insert(0, wrong)
    else:
        blocks.clear()
        file = config.parent / "sets.yaml"
        good = {"name": "cells", "format": "coco", "json": "coco.json", "images": "images"}
        file.write_text(yaml.safe_dump({"DATASETS": [wrong, good]}))
        monkeypatch.setenv("FOCAL_DET_DATASETS", str(file))
        steps = [setup_environment]  # once a process, as without DETECTRON2_ENV_MODULE
        monkeypatch.setattr(
            "focal_det.env.ensure_environment", lambda: steps.pop()() if steps else None
        )
    config.write_text(yaml.safe_dump(content))
    assert run(config, "--dataset", "cells") == 0
    capsys.readouterr()
    if place == "config":
        assert run(config) == 2
        assert "data set 'wrong': json is 'nowhere.json'" in capsys.readouterr().out
        return
    steps.append(setup_environment)
    with pytest.raises(SystemExit):
        run(config)
    assert "data set 'wrong': json is 'nowhere.json'" in capsys.readouterr().err


def test_train_without_a_config_names_the_argument(capsys):
    with pytest.raises(SystemExit) as stop:
        train([])
    assert stop.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "--config-file is required" in error and "''" not in error


def test_interrupt_is_one_line(monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("focal_det.tools.check.load_checked_config", interrupt)
    with pytest.raises(SystemExit) as stop:
        focal_det_main(["check", "--config-file", "digits/focal_retinanet_tiny.yaml"])
    assert stop.value.code == 130
    assert capsys.readouterr().err == "\nfocal-det check: interrupted\n"


@pytest.fixture
def weights(config):
    """The file of a model of the config, and its parameters."""
    model = build_model(load_config(config)).state_dict()
    torch.save({"model": model}, config.parent / "w.pth")
    return config.parent / "w.pth", model


@pytest.mark.parametrize(
    ("base_lr", "warmup", "message"),
    [
        (
            0.5,
            100,
            "0.5 for 8 images. The linear rule (16 images at 0.01) gives about 0.005",
        ),
        (0.0001, 100, "0.0001 for 8 images"),
        (0.05, 100, None),  # the config has batch norm
        (0.0003, 100, None),  # as in tutorials of fine-tuning
        (
            0.01,
            10,
            "short warm-up for a high learning rate: SOLVER.BASE_LR 0.01, SOLVER.WARMUP_ITERS 10",
        ),
        (0.005, 10, None),
    ],
)
def test_unusual_learning_rate_is_reported(base_lr, warmup, message, config, weights, capsys):
    words = [
        "MODEL.WEIGHTS",
        str(weights[0]),
        "SOLVER.BASE_LR",
        str(base_lr),
        "SOLVER.WARMUP_ITERS",
        str(warmup),
    ]
    assert run(config, *words) == int(message is not None)
    output = capsys.readouterr().out
    assert message in output if message else "learning rate" not in output


@pytest.mark.parametrize(
    ("share", "severity"), [(0.05, "error"), (0.2, "warning"), (0.9, "note"), (1, None)]
)
def test_partly_fitting_weights_are_reported(share, severity, config, weights, capsys):
    file, model = weights
    names = [k for k, _ in build_model(load_config(config)).named_parameters()]
    left_out = set(names[int(share * len(names)) :])
    torch.save({"model": {k: v for k, v in model.items() if k not in left_out}}, file)
    code = run(config, "MODEL.WEIGHTS", str(file), "SOLVER.BASE_LR", "0.005")
    lines = [x for x in capsys.readouterr().out.splitlines() if str(file) in x]
    assert code == {"error": 2, "warning": 1}.get(severity, 0)
    if severity is None:
        assert not lines
        return
    (line,) = lines
    assert (
        line.startswith(severity)
        and f"{int(share * len(names))} of " in line
        and f" {len(names)} " in line
    )


def add_test_set(config, change):
    """Another set as the only test set, with `change` to its content."""
    folder = config.parent / "other"
    folder.mkdir()
    write_coco(folder)
    annotations = json.loads((folder / "coco.json").read_text())
    change(annotations)
    (folder / "coco.json").write_text(json.dumps(annotations))
    content = yaml.safe_load(config.read_text())
    block = {
        "name": "other",
        "format": "coco",
        "json": str(folder / "coco.json"),
        "images": str(folder / "images"),
    }
    content["MODEL"]["FOCAL_DET"]["DATASETS"].append(block)
    content["DATASETS"]["TEST"] = ["other"]
    config.write_text(yaml.safe_dump(content))


def test_test_set_with_other_classes_is_reported(config, capsys):
    add_test_set(config, lambda c: c["categories"][0].update(name="circles"))
    assert run(config) == 2
    message = (
        "class 0 is 'circle' in cells, 'circles' in other. "
        "Unknown class of cells 'circles'. Did you mean 'circle'?"
    )
    assert message in capsys.readouterr().out


def test_extra_class_of_one_set_leaves_the_model_alone(config, capsys):
    """Setting NUM_CLASSES to the number of one set, then of the other, would never end."""
    add_test_set(config, lambda c: c["categories"].append({"id": 3, "name": "squares"}))
    assert run(config) == 2
    output = capsys.readouterr().out
    message = (
        "class 2 is missing in cells, 'squares' in other. "
        "Unknown class of cells 'squares'. Did you mean 'square'?"
    )
    assert message in output
    assert "NUM_CLASSES" not in output


def test_missing_area_of_a_test_set_stays_an_error(config, capsys):
    add_test_set(config, lambda c: c["annotations"][3].pop("area"))
    file = config.parent / "coco.json"
    content = json.loads(file.read_text())
    del content["annotations"][0]["iscrowd"]
    file.write_text(json.dumps(content))
    assert run(config) == 2
    lines = [
        x.split()[0]
        for x in capsys.readouterr().out.splitlines()
        if "annotation without iscrowd or area" in x
    ]
    assert lines == ["error", "warning"]


@pytest.mark.parametrize(
    "change",
    [lambda c: c.pop("annotations"), lambda c: c["annotations"].clear()],
    ids=["no list", "empty"],
)
def test_test_set_may_have_no_annotations(change, config, capsys):
    add_test_set(config, change)
    assert run(config) == 1
    assert "test set without a usable annotation" in capsys.readouterr().out


def test_lvis_images_are_found_by_their_address(config, capsys):
    def to_lvis(content):
        for image in content["images"]:
            image["coco_url"] = f"http://images.example.org/images/{image.pop('file_name')}"
        for annotation in content["annotations"]:
            del annotation["iscrowd"]

    add_test_set(config, to_lvis)
    load_config(config)
    MetadataCatalog.get("lvis_copy").set(
        json_file=str(config.parent / "other" / "coco.json"),
        image_root=f"{config.parent}/other/",
        evaluator_type="lvis",
    )
    DatasetCatalog.register("lvis_copy", lambda: [])
    assert run(config, "--dataset", "lvis_copy") == 0
    (config.parent / "other" / "images" / "2.png").unlink()
    assert run(config, "--dataset", "lvis_copy") == 2
    assert "missing image file" in capsys.readouterr().out


def test_few_images_with_objects_are_enough(config, capsys):
    file = config.parent / "coco.json"
    content = json.loads(file.read_text())
    content["images"] += [{**content["images"][2], "id": 10 + i} for i in range(500)]
    content["annotations"] = content["annotations"][:1]
    file.write_text(json.dumps(content))
    assert run(config, "--json", "--images", "1") == 1
    figures = json.loads(capsys.readouterr().out, parse_constant=float)["training_set"]
    assert figures["images"] == 504 and figures["boxes_reached"] == 1.0


def register(name, records, **metadata):
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).set(thing_classes=CLASSES, **metadata)


def test_data_registered_by_code_is_checked(config, tmp_path, capsys):
    records = load_records(tmp_path)
    register("own", records, evaluator_type="coco")
    words = ["DATASETS.TRAIN", "('own',)", "DATASETS.TEST", "('own',)"]
    assert run(config, *words) == 0
    records[0]["annotations"][0]["bbox"] = [5, 5, 0, 9]
    records[0]["annotations"][1]["category_id"] = 2
    del records[1]["height"]
    records[2]["image_id"], records[3]["image_id"] = [3], records[0]["image_id"]
    capsys.readouterr()
    assert run(config, *words) == 2
    output = capsys.readouterr().out
    assert (
        "0.png (image 1, 96 x 96), object 0: [5.0, 5.0, 0.0, 9.0]" in output
        and "object 1: category_id 2" in output
    )
    assert "1.png has no height" in output and "2.png: [3] is a list" in output
    files = [records[i]["file_name"] for i in (0, 3)]
    assert f"repeated image id in a test set: own: id 1 of {files[0]} and {files[1]}" in output


def test_failing_evaluation_is_found_before_training(config, tmp_path, capsys):
    register(
        "own", load_records(tmp_path), evaluator_type="pascal_voc"
    )  # whose evaluator wants the folder of the annotations
    assert run(config, "DATASETS.TEST", "('own',)") == 2
    assert (
        "test set whose evaluation fails: own: AttributeError: Attribute 'dirname'"
        in capsys.readouterr().out
    )
    register("other", load_records(tmp_path), evaluator_type="citiscapes")
    assert run(config, "DATASETS.TEST", "('other',)") == 2
    assert (
        "test set without an evaluator: other. Set its evaluator_type to one of coco"
        in capsys.readouterr().out
    )


@pytest.fixture
def small_boxes(config):
    """The config with boxes of 9 px in place of the squares, which no anchor reaches."""
    shrink_squares(config.parent)
    return config


def test_labels_that_need_predictions_are_not_those_of_training(config):
    cfg = load_checked_config(
        config, ["MODEL.FOCAL_DET.ASSIGNER.NAME", "TaskAlignedAssigner"], None
    )
    _, report = run_checks(cfg)
    (line,) = [x for x in describe(report) if x.startswith("anchors (")]
    assert line.endswith(" per image; labelled by IoU, as TaskAlignedAssigner needs predictions")


def test_thresholds_are_not_those_of_an_assigner_without_any(small_boxes):
    words = ["MODEL.RETINANET.IOU_THRESHOLDS", "[0.4, 0.6]", "MODEL.FOCAL_DET.ASSIGNER.NAME"]
    texts = {}
    for name in ("IoUAssigner", "ATSSAssigner"):
        findings, report = run_checks(load_checked_config(small_boxes, [*words, name], None))
        texts[name] = "\n".join([*(x.title for x in findings), *describe(report)])
    title = "boxes that no anchor overlaps enough"
    assert title in texts["IoUAssigner"] and title not in texts["ATSSAssigner"]
    assert "boxes matched to a positive anchor" in texts["ATSSAssigner"]


def test_the_first_line_is_on_the_imbalance(config):
    cfg = load_checked_config(config, [], None)
    _, report = run_checks(cfg)
    (stage,) = report.stages
    negatives = report.fit.negatives_per_image.sum()
    ratio = negatives / report.fit.positives_per_image.sum()
    first = describe(report)[0]
    number = re.match(r"imbalance: ([\d.]+) negative anchors per positive; ", first)[1]
    assert float(number) == pytest.approx(ratio, rel=0.01)
    none = replace(stage, balance=replace(stage.balance, positives=0))
    assert describe(replace(report, stages=[none]))[0].startswith("imbalance: no positive anchors;")


def test_suggested_anchors_reach_more_boxes(small_boxes, tmp_path, capsys):
    out = tmp_path / "better" / "anchors.yaml"
    assert run(small_boxes, "--write", str(out)) == 1
    output = capsys.readouterr().out
    assert (
        "boxes that no anchor overlaps enough: 2 of 4 (50.0 %): 2 smaller than the median" in output
    )
    assert (
        "0 not smaller; worst class: square, which loses 100.0 % of its boxes" in output
        and "would reach 100.0 % of the boxes, against 50.0 % now" in output
    )
    cfg = load_config(out)
    assert (
        len(cfg.MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS) == 2
        and min(map(min, cfg.MODEL.ANCHOR_GENERATOR.SIZES)) < 24
    )
    assert run(out) == 0  # which measures again, with a model of the written config
    assert "an anchor overlaps with IoU >= 0.5: 4 of 4 (100.0 %)" in capsys.readouterr().out
    config_before = small_boxes.read_text()
    with pytest.raises(SystemExit):
        run(small_boxes, "--write", str(small_boxes))
    assert (
        "exists and is not from this program" in capsys.readouterr().err
        and small_boxes.read_text() == config_before
    )


def test_suggestion_never_becomes_its_own_base(config, tmp_path, capsys):
    out = tmp_path / "better.yaml"
    assert run(config, "--write", str(out)) == 0
    before = out.read_text()
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(out, "--write", str(out))
    printed = capsys.readouterr()
    assert "--write" in printed.err and "is --config-file or one of its bases" in printed.err
    assert out.read_text() == before
    assert not printed.out  # refused before minutes of checks


def test_broken_image_that_was_not_decoded_spares_the_page(config, tmp_path, capsys):
    (config.parent / "images" / "1.png").write_bytes(b"no image")
    page = tmp_path / "page.html"
    assert run(config, "--images", "1", "--output", str(page)) == 0
    assert "CHK226 partly decoded data set" in capsys.readouterr().out
    assert "training set: 4 images" in page.read_text(encoding="utf-8")
    assert len(read_pictures(page)) == 3


def rename_classes(config, *names):
    file = config.parent / "coco.json"
    content = json.loads(file.read_text())
    for category, name in zip(content["categories"], names):
        category["name"] = name
    file.write_text(json.dumps(content))


def test_names_cannot_control_terminal_or_page(config, tmp_path, capsys):
    rename_classes(config, "\x1b[31mred", "b\x07\x9b2J\ud800\nell")
    (config.parent / "images" / "2.png").rename(config.parent / "images" / "\x1b[2J.png")
    file = config.parent / "coco.json"
    file.write_text(file.read_text().replace("2.png", "\\u001b[2J.png"))
    out = tmp_path / "better.yaml"
    assert run(config, "--output", str(tmp_path / "page.html"), "--write", str(out)) == 0
    output = capsys.readouterr().out
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    for text in (output, page, out.read_text(encoding="utf-8")):
        assert r"\x1b[31mred 2" in text and r"b\x07\x9b2J\ud800 ell 2" in text
        assert not set(text) & {"\x1b", "\x07", "\x9b"}
    assert r"\x1b[2J.png" in output  # an image of a single colour
    assert load_config(out).MODEL.FOCAL_DET.PRIOR_PROB_PER_CLASS


def test_long_class_names_are_shortened_on_the_page(config, tmp_path, capsys):
    rename_classes(config, 20_000 * "a", 19_999 * "a" + "b")
    page = tmp_path / "page.html"
    assert run(config, "--output", str(page)) == 0
    assert 1000 * "a" not in page.read_text(encoding="utf-8")
    for height, width, _ in (x.shape for x in read_pictures(page)):
        assert height * width < 4e6
    assert len(capsys.readouterr().out) < 10_000
    assert run(config, "--json") == 0
    figures = json.loads(capsys.readouterr().out)["training_set"]
    assert list(figures["objects_per_class"].values()) == [2, 2]  # whole names: two classes


def count_labelled(monkeypatch):
    """The records whose anchors a check labels, from now on."""
    labelled = []

    def label(record, setup):
        labelled.append(record)
        return label_record(record, setup)

    monkeypatch.setattr("focal_det.imbalance.anchors.label_record", label)
    monkeypatch.setattr("focal_det.imbalance.first_loss.label_record", label)
    return labelled


def test_at_most_the_given_images_are_labelled(small_boxes, monkeypatch, capsys):
    labelled = count_labelled(monkeypatch)
    assert run(small_boxes, "--images", "2") == 1
    # The first fit, and the loss of a batch; with and without what is suggested.
    assert len({id(x) for x in labelled}) == 2 and len(labelled) <= 8
    assert "anchors (2 images" in capsys.readouterr().out


def test_fewer_images_with_many_boxes_are_labelled(config, monkeypatch, capsys):
    file = config.parent / "coco.json"
    content = json.loads(file.read_text())
    first = content["annotations"][0]
    content["annotations"] = [
        {**first, "id": i + 1, "image_id": i % 4 + 1, "bbox": [i % 60, i // 60, 20, 20 + i / 999]}
        for i in range(400)
    ]
    file.write_text(json.dumps(content))
    monkeypatch.setattr("focal_det.imbalance.measure._MAX_BOXES", 200)
    labelled = count_labelled(monkeypatch)
    run(config)
    assert len({id(x) for x in labelled}) == 2
    assert "anchors (2 images" in capsys.readouterr().out


def test_anchor_search_shows_progress_on_a_terminal(small_boxes, monkeypatch, capsys):
    run(small_boxes)
    assert "anchors:" not in capsys.readouterr().err
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    run(small_boxes)
    error = capsys.readouterr().err
    assert "\ranchors:" in error and "\rother anchors:" in error


def test_interrupted_search_leaves_the_page(config, tmp_path, monkeypatch, capsys):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("focal_det.imbalance.measure.suggest_anchors", interrupt)
    page = tmp_path / "page.html"
    with pytest.raises(SystemExit) as stop:
        run(config, "--output", str(page))
    assert stop.value.code == 130
    text = page.read_text(encoding="utf-8")
    assert "CHK133 training set with empty images" in text and "CHK000 interrupted check" in text
    assert str(page) in capsys.readouterr().err


def test_only_some_of_very_many_boxes_are_drawn(tmp_path, monkeypatch):
    """Thousands take half a minute, and hide the image."""
    (record, *_) = load_records(tmp_path)
    record["annotations"] = 500 * record["annotations"][:1]
    drawn = []

    def draw(image, boxes, *args, **kwargs):
        drawn.append(len(boxes))
        return draw_boxes(image, boxes, *args, **kwargs)

    monkeypatch.setattr("focal_det.report.detections.draw_boxes", draw)
    make_ground_truth_figure([record], CLASSES)
    assert drawn == [200]


def test_page_has_findings_measures_and_pictures(small_boxes, tmp_path, capsys):
    page = tmp_path / "pages" / "check.html"
    assert run(small_boxes, "--output", str(page)) == 1
    text = page.read_text(encoding="utf-8")
    assert "CHK503 boxes that no anchor overlaps enough" in text
    assert "training set: 4 images, 4 objects" in text
    assert [picture.std() > 10 for picture in read_pictures(page)] == 3 * [True]
    assert [x.name for x in page.parent.iterdir()] == ["check.html"]
    assert f"page:    {page}" in capsys.readouterr().out


# GHM-C takes its densities and RS loss its ranks from the whole batch, so that image by image they
# are near only. The sampling-free loss takes the value of the box loss.
NOT_EXPECTED = {"GHMCLoss", "RankSortLoss", "SamplingFreeLoss"}


@pytest.mark.parametrize("loss", sorted(dict(CLS_LOSS_REGISTRY).keys() - NOT_EXPECTED))
def test_expected_loss_is_that_of_the_first_step(loss, config):
    """With a head whose scores are the prior and whose boxes overlap nothing.

    The whole set is in a batch, whose size is given.
    """
    words = [
        "SOLVER.IMS_PER_BATCH",
        "4",
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS",
        "False",
        "MODEL.FOCAL_DET.CLS_LOSS.NAME",
        loss,
    ]
    cfg = load_config(config, words)
    model = Trainer.build_model(cfg).train()
    torch.nn.init.zeros_(model.head.cls_score.weight)
    torch.nn.init.constant_(model.head.bbox_pred.bias, 1e3)  # far away
    mapper = DatasetMapper(cfg, is_train=True, augmentations=[ResizeShortestEdge(128, 1333)])
    records = DatasetCatalog.get("cells")
    with EventStorage():
        first = model([mapper(x) for x in records])["loss_cls"]
    (stage,) = read_stages(cfg)
    expected = compute_first_loss(stage, records, build_anchor_setup(cfg))
    assert expected.loss == pytest.approx(float(first), rel=1e-4)


def test_only_a_terminal_gets_colours(config, monkeypatch, capsys):
    words = ["DATASETS.TEST", "('cels',)"]
    run(config, *words)
    assert "\033" not in capsys.readouterr().out
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    run(config, *words)
    monkeypatch.setenv("COLUMNS", "60")
    capsys.readouterr()
    run(config, *words)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "\033[31merror   \033[0mCHK002 unregistered data set"
    assert lines[1] == "        - DATASETS.TEST: Unknown data set 'cels'."
    assert all(len(x) <= 60 or "/" in x for x in lines if x.startswith(" "))  # paths are not broken


def test_json_has_the_faults_and_a_copy_is_corrected(config, capsys):
    file = config.parent / "coco.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][2] = 0
    del content["annotations"][1]["area"]
    file.write_text(json.dumps(content))
    assert run(config, "--json") == 2
    printed = json.loads(capsys.readouterr().out)
    findings = {x["id"]: x for x in printed["findings"]}
    assert findings["CHK311"]["severity"] == "warning" and findings["CHK302"]["count"] == 1
    assert "annotation 1 of 0.png" in findings["CHK311"]["places"][0]
    before = file.read_text()
    assert (
        run(config, "--dataset", "cells", "--fix", str(config.parent / "new" / "fixed.json")) == 2
    )
    assert file.read_text() == before and "removed: box without area (1)" in capsys.readouterr().err
    file.write_text((config.parent / "new" / "fixed.json").read_text())
    assert (
        printed["training_set"] is None and run(config, "--json") == 0
    )  # with an error it is not looked at
    figures = json.loads(capsys.readouterr().out)["training_set"]
    assert figures["images"] == 4 and figures["objects_per_class"] == {"circle": 1, "square": 2}
    assert (
        set(figures["positives_per_level"]) == {"p3", "p4", "p5", "p6", "p7"}
        and figures["best_possible_recall"] == 1
    )


def test_given_number_of_images_is_decoded(config, capsys):
    file = config.parent / "images" / "2.png"
    file.write_bytes(b"no image")
    assert run(config) == 2
    assert "image that cannot be decoded" in capsys.readouterr().out
    assert run(config, "--images", "1") == 0
    assert (
        f"partly decoded data set: {file.parent}: 1 of 4. The other images"
        in capsys.readouterr().out
    )
    file.write_bytes(b"")
    assert run(config, "--images", "1") == 2
    assert "empty image file" in capsys.readouterr().out


def test_deeply_nested_annotations_are_an_error(config, capsys):
    file = config.parent / "coco.json"
    nested = "[" * 100_000 + "]" * 100_000
    file.write_text(file.read_text().replace('"iscrowd": 0', f'"segmentation": {nested}', 1))
    assert run(config, "--dataset", "cells") == 2
    assert f"nested too deeply: {file}" in capsys.readouterr().out


def test_nul_in_a_file_name_is_found_with_its_image(config, capsys):
    file = config.parent / "coco.json"
    file.write_text(file.read_text().replace("1.png", "1\\u0000.png"))
    assert run(config) == 2
    output = capsys.readouterr().out
    assert f"{file}: image 2, '1\\x00.png'" in output and "\0" not in output


def write_voc_config(folder, **changes):
    """A config that trains and tests on a correct VOC data set, by VOC's own metrics."""
    write_voc(folder)
    names = {"name": "cells", "format": "voc", "root": str(folder), "split": "train"}
    return write_config(folder, {**names, "classes": CLASSES, **changes})


def test_nul_in_a_voc_list_is_found_with_its_line(tmp_path, capsys):
    config = write_voc_config(tmp_path)
    file = tmp_path / "ImageSets" / "Main" / "train.txt"
    file.write_text("0\n1\0\n2\n3\n")
    assert run(config) == 2
    assert f"{file}, line 2: '1\\x00' is not a file name" in capsys.readouterr().out


VOC_FAULTS = {
    "no pose": ("<pose>Unspecified</pose>", ""),
    "no truncated": ("<truncated>0</truncated>", ""),
    "no difficult": ("<difficult>0</difficult>", ""),
    "difficult '' is not a whole number": (
        "<difficult>0</difficult>",
        "<difficult></difficult>",
    ),
    "xmin '31.0' is not a whole number": ("<xmin>31</xmin>", "<xmin>31.0</xmin>"),
}


@pytest.mark.parametrize("words", [(), ("--dataset", "cells")], ids=["all", "one"])
@pytest.mark.parametrize("fault", VOC_FAULTS)
def test_fault_of_voc_evaluation_is_named(fault, words, tmp_path, capsys):
    config = write_voc_config(tmp_path)
    file = tmp_path / "Annotations" / "3.xml"
    file.write_text(file.read_text().replace(*VOC_FAULTS[fault]))
    assert run(config, *words) == 2
    line = f"annotation that VOC evaluation cannot read: {file}, object 0: {fault}"
    assert line in capsys.readouterr().out


def test_coco_metrics_need_no_pose_of_a_voc_set(tmp_path, capsys):
    config = write_voc_config(tmp_path, evaluator="coco")
    for file in (tmp_path / "Annotations").glob("*.xml"):
        text = file.read_text().replace("<pose>Unspecified</pose>", "")
        file.write_text(text.replace("<truncated>0</truncated><difficult>0</difficult>", ""))
    assert run(config) == 0
    assert "cannot read" not in capsys.readouterr().out


def test_class_list_as_voc_test_set_is_named(tmp_path, capsys):
    """Its lines are name and flag, which the evaluator takes for the name of a file."""
    config = write_voc_config(tmp_path)
    file = tmp_path / "ImageSets" / "Main" / "train.txt"
    file.write_text("0  1\n1 -1\n3  1\n")
    assert run(config) == 2
    assert f"{file}, line 1: '0  1' is not just a name" in capsys.readouterr().out


def test_shared_fault_is_reported_and_not_corrected(config, capsys):
    file = config.parent / "coco.json"
    content = json.loads(file.read_text())
    for annotation in content["annotations"]:
        annotation["category_id"] -= 1
    content["annotations"] += [
        {**content["annotations"][0], "id": 10 + i, "bbox": [i, 10, 36, 36]} for i in range(5)
    ]
    file.write_text(json.dumps(content))
    with pytest.raises(SystemExit):
        run(config, "--dataset", "cells", "--fix", str(config.parent / "fixed.json"))
    output = capsys.readouterr()
    assert (
        "error   CHK320 shifted category ids" in output.out
        and "CHK320 shifted category ids" in output.err
    )
    assert not (config.parent / "fixed.json").exists()


def test_faulty_voc_box_and_file_are_reported(tmp_path, capsys):
    config = write_voc_config(tmp_path)
    write_annotation(tmp_path / "Annotations" / "1.xml", [("circle", [20, 20, 19, 40])])
    assert run(config) == 1
    assert "box without area: cells: 1 (circle" in capsys.readouterr().out
    (tmp_path / "Annotations" / "1.xml").write_text("<annotation>")
    assert run(config) == 2
    assert "1.xml is not a VOC annotation" in capsys.readouterr().out


def test_ids_are_in_text_json_and_page(config, tmp_path, capsys):
    page = tmp_path / "page.html"
    assert run(config, "--output", str(page), "SOLVER.STEPS", "(5000,)") == 1
    assert "\nwarning CHK012 learning rate step after" in capsys.readouterr().out
    assert "CHK012 learning rate step after" in page.read_text(encoding="utf-8")
    assert run(config, "--json", "SOLVER.STEPS", "(5000,)") == 1
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert findings[0]["id"] == "CHK012"
    assert findings[0]["title"] == "learning rate step after the end of training"


def test_ignored_ids_are_left_out(config, capsys):
    words = ["--ignore", "CHK012", "CHK133", "--images", "4", "SOLVER.STEPS", "(5000,)"]
    assert run(config, *words) == 0
    output = capsys.readouterr().out
    assert "CHK012" not in output and "CHK133" not in output
    assert "no errors, no warnings, 2 notes" in output


def test_ignored_error_lets_the_training_set_be_measured(config, capsys):
    (config.parent / "images" / "2.png").write_bytes(b"no image")
    assert run(config) == 2
    assert "training set: 4 images" not in capsys.readouterr().out
    assert run(config, "--ignore", "CHK222", "--images", "0") == 0
    assert "training set: 4 images" in capsys.readouterr().out


def test_crash_at_an_ignored_error_is_not_a_bug(config, capsys):
    """Without annotations, nothing can be measured."""
    file = config.parent / "coco.json"
    content = json.loads(file.read_text())
    content["annotations"] = []
    file.write_text(json.dumps(content))
    with pytest.raises(SystemExit) as stop:
        run(config, "--ignore", "CHK130", "CHK410", "--images", "4")
    assert stop.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "check_training_set failed" in line and "because of an ignored error (CHK130" in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fix", "a.json"], "--fix needs --dataset"),
        (["--ignore", "chk012", "--images", "4"], "check id 'chk012'. Did you mean 'CHK012'"),
        (["--dataset", "cels"], "Did you mean 'cells'"),
        (["--images", "-1"], "--images: must be >= 0"),
        (["SOLVER.BASE_LRR", "1"], "Did you mean 'BASE_LR'"),
        (["--dataset", "cells", "--fix", "{json}"], "is the original; write to another file"),
    ],
)
def test_wrong_argument_is_named(config, words, message, capsys):
    with pytest.raises(SystemExit):
        run(config, *[x.format(json=config.parent / "coco.json") for x in words])
    assert message in capsys.readouterr().err


def test_advice_is_given_with_its_record_and_written(config, tmp_path, monkeypatch, capsys):
    values = {"MODEL.RETINANET.FOCAL_LOSS_GAMMA": 0.0, "MODEL.RETINANET.FOCAL_LOSS_ALPHA": 0.5}
    better = {"name": "CE", "values": values, "mean": 50.0, "error": 1.0}
    mine = {"name": "FL", "values": {"MODEL.RETINANET.FOCAL_LOSS_GAMMA": 2.0}, "error": 1.0}
    mine["rate"] = better["rate"] = 0.01
    answers = [{**mine, "mean": 40.0}, better]
    sizes = {"negatives_per_positive": 150, "classes": 3}
    comparison = {"sizes": sizes, "record": "results/60.json", "answers": answers}
    file = tmp_path / "evidence.json"
    file.write_text(json.dumps({"loss": [comparison], "sampling": []}))
    monkeypatch.setattr(advice, "_EVIDENCE", file)
    out = tmp_path / "better.yaml"
    assert run(config, "--write", str(out)) == 0
    text = "  loss: better: CE: AP 50.0 ± 1.0, and 40.0 ± 1.0 with yours, FL (digits, 150 negative "
    text += "anchors per positive, 3 classes; results/60.json)\n"
    assert text in capsys.readouterr().out
    cfg = load_config(out)
    assert cfg.MODEL.RETINANET.FOCAL_LOSS_GAMMA == 0
    # With an alpha per class, it would not be what was recorded.
    assert list(cfg.MODEL.FOCAL_DET.CLS_LOSS.ARGS.FocalLoss.alpha_per_class) == []
    assert run(out) == 0
    assert "  loss: keep CE: AP 50.0 ± 1.0" in capsys.readouterr().out
    assert run(config, "--json") == 0
    (given,) = json.loads(capsys.readouterr().out)["training_set"]["advice"]
    assert given["values"] == values and given["records"] == [comparison["record"]]
