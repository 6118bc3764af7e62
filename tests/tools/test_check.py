"""`focal-det check`: what is wrong with data and config is told before a training, with an exit code and a corrected copy."""

import json

import pytest
import yaml

from focal_det.model_zoo import get_config_file
from focal_det.tools.check import main
from tests.data.make_data import CLASSES, write_annotation, write_coco, write_voc

pytestmark = pytest.mark.usefixtures("clean_catalog")


@pytest.fixture
def config(tmp_path):
    """A config that trains and tests on a correct COCO data set of two classes."""
    write_coco(tmp_path)
    block = {"name": "cells", "format": "coco", "json": str(tmp_path / "coco.json"), "images": str(tmp_path / "images")}
    return write_config(tmp_path, block)


def write_config(folder, block, **changes):
    model = {"RETINANET": {"NUM_CLASSES": 2}, "FOCAL_DET": {"DATASETS": [block]}}
    content = {"_BASE_": get_config_file("digits/focal_retinanet_tiny.yaml"), "MODEL": model}
    content["DATASETS"] = {"TRAIN": [block["name"]], "TEST": [block["name"]]}
    (folder / "config.yaml").write_text(yaml.safe_dump({**content, **changes}))
    return folder / "config.yaml"


def run(config, *words):
    return main(["--config-file", str(config), *words])


def test_correct_data_and_config_pass(config, capsys):
    assert run(config) == 0
    assert "0 kinds of errors, 0 of warnings, 1 notes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message", "code"),
    [
        (["MODEL.RETINANET.NUM_CLASSES", "1"], "cells has 2 (circle, square), MODEL.RETINANET.NUM_CLASSES is 1", 2),
        (["MODEL.RETINANET.NUM_CLASSES", "7"], "Set MODEL.RETINANET.NUM_CLASSES to 2", 2),
        (["DATASETS.TEST", "('cels',)"], "DATASETS.TEST: Unknown data set 'cels'. Did you mean 'cells'", 2),
        (["SOLVER.BASE_LR", "float('nan')"], "SOLVER.BASE_LR", 2),
        (["SOLVER.STEPS", "(5000,)"], "[5000] with SOLVER.MAX_ITER 1100", 1),
        (["MODEL.WEIGHTS", "none.pth"], "weights that do not exist: none.pth", 2),
        (["MODEL.ROI_HEADS.NUM_CLASSES", "2"], "RetinaNet reads MODEL.RETINANET.NUM_CLASSES", 1),
    ],
)
def test_a_config_that_does_not_go_with_its_data_is_told(config, words, message, code, capsys):
    if words[1].startswith("float"):
        config.write_text(config.read_text() + "SOLVER:\n  BASE_LR: .nan\n")
        words = []
    assert run(config, *words) == code
    assert message in capsys.readouterr().out


def test_a_learning_rate_far_from_the_batch_is_told(config, capsys):
    (config.parent / "w.pth").write_bytes(b"")
    assert run(config, "MODEL.WEIGHTS", str(config.parent / "w.pth"), "SOLVER.BASE_LR", "0.5") == 1
    assert "0.5 for 8 images. By the linear rule (16 images at 0.01) it would be about 0.005" in capsys.readouterr().out


def test_faults_of_the_data_are_told_as_json_and_corrected_in_a_copy(config, capsys):
    file = config.parent / "coco.json"
    content = json.loads(file.read_text())
    content["annotations"][0]["bbox"][2] = 0
    del content["annotations"][1]["area"]
    file.write_text(json.dumps(content))
    assert run(config, "--json") == 2
    findings = {x["what"]: x for x in json.loads(capsys.readouterr().out)}
    assert findings["boxes without area"]["severity"] == "warning" and findings["annotations without iscrowd or area"]["count"] == 1
    assert "annotation 1 of 0.png" in findings["boxes without area"]["places"][0]
    before = file.read_text()
    assert run(config, "--dataset", "cells", "--fix", str(config.parent / "new" / "fixed.json")) == 2
    assert file.read_text() == before and "removed: boxes without area (1)" in capsys.readouterr().err
    file.write_text((config.parent / "new" / "fixed.json").read_text())
    assert run(config) == 0


def test_images_are_decoded_as_many_as_asked(config, capsys):
    (config.parent / "images" / "2.png").write_bytes(b"")
    assert run(config) == 2
    assert "2.png" in capsys.readouterr().out
    assert run(config, "--images", "1") == 0


def test_a_voc_box_without_area_and_an_annotation_that_is_none_are_told(tmp_path, capsys):
    write_voc(tmp_path)
    block = {"name": "cells", "format": "voc", "root": str(tmp_path), "split": "train", "classes": CLASSES}
    config = write_config(tmp_path, block)
    write_annotation(tmp_path / "Annotations" / "1.xml", [("circle", [20, 20, 19, 40])])
    assert run(config) == 1
    assert "boxes without area: cells: 1 (circle" in capsys.readouterr().out
    (tmp_path / "Annotations" / "1.xml").write_text("<annotation>")
    assert run(config) == 2
    assert "1.xml is not a VOC annotation" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--fix", "a.json"], "--fix needs --dataset"),
        (["--dataset", "cels"], "Did you mean 'cells'"),
        (["--images", "-1"], "--images must be >= 0"),
        (["SOLVER.BASE_LRR", "1"], "Did you mean 'BASE_LR'"),
        (["--dataset", "cells", "--fix", "{json}"], "is the original; write to another file"),
    ],
)
def test_a_wrong_argument_is_named(config, words, message, capsys):
    with pytest.raises(SystemExit):
        run(config, *[x.format(json=config.parent / "coco.json") for x in words])
    assert message in capsys.readouterr().err
