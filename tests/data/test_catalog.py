"""Data sets without code: what a block registers, and what a wrong one says."""

import json

import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from focal_det.data.catalog import (
    prepare_datasets,
    register_datasets,
    register_datasets_file,
    register_digits,
)
from tests.data.make_data import CLASSES, write_coco, write_voc


@pytest.fixture(autouse=True)
def clean_catalog():
    """Take the data sets of a test out of the catalogs again."""
    before = set(DatasetCatalog.list())
    yield
    for name in set(DatasetCatalog.list()) - before:
        DatasetCatalog.pop(name)
        MetadataCatalog.pop(name)


def coco_block(folder, **changes):
    return {
        "name": "cells",
        "format": "coco",
        "json": str(folder / "coco.json"),
        "images": str(folder / "images"),
        **changes,
    }


def voc_block(folder, **changes):
    block = {
        "name": "cells",
        "format": "voc",
        "root": str(folder),
        "split": "train",
        "classes": CLASSES,
    }
    return {k: v for k, v in {**block, **changes}.items() if v is not None}


def test_a_coco_block_registers_what_detectron2_would(tmp_path):
    write_coco(tmp_path)
    register_datasets([coco_block(tmp_path)], source="test")
    records = DatasetCatalog.get("cells")
    metadata = MetadataCatalog.get("cells")
    assert len(records) == 4 and [len(x["annotations"]) for x in records] == [2, 1, 0, 1]
    assert metadata.evaluator_type == "coco" and metadata.json_file == str(tmp_path / "coco.json")
    assert metadata.thing_classes == CLASSES


@pytest.mark.parametrize(("evaluator", "kind"), [(None, "pascal_voc"), ("coco", "coco")])
def test_a_voc_block_registers_the_metadata_of_its_evaluator(tmp_path, evaluator, kind):
    write_voc(tmp_path)
    register_datasets([voc_block(tmp_path, evaluator=evaluator)], source="test")
    metadata = MetadataCatalog.get("cells")
    assert metadata.evaluator_type == kind and metadata.dirname == str(tmp_path)
    assert metadata.split == "train" and metadata.year == 2012
    assert metadata.thing_classes == CLASSES and len(DatasetCatalog.get("cells")) == 4


def test_paths_start_at_the_file_and_may_have_variables(tmp_path, monkeypatch):
    write_coco(tmp_path / "here")
    write_voc(tmp_path / "voc")
    monkeypatch.setenv("CELLS", str(tmp_path / "voc"))
    blocks = [
        coco_block(tmp_path, name="a", json="coco.json", images="images"),
        voc_block(tmp_path, name="b", root="$CELLS"),
        voc_block(tmp_path, name="c", root="${CELLS}/../voc"),
    ]
    file = tmp_path / "here" / "sets.yaml"
    file.write_text(yaml.safe_dump({"DATASETS": blocks}))
    register_datasets_file(str(file))
    assert [len(DatasetCatalog.get(name)) for name in "abc"] == [4, 4, 4]


def test_a_name_may_be_registered_again_only_unchanged(tmp_path):
    write_voc(tmp_path)
    register_datasets([voc_block(tmp_path)], source="test")
    register_datasets([voc_block(tmp_path)], source="test")
    with pytest.raises(ValueError, match="test: data set 'cells': the name is taken"):
        register_datasets([voc_block(tmp_path, split="val")], source="test")
    with pytest.raises(ValueError, match="the name is taken"):
        register_datasets([voc_block(tmp_path, name="coco_2017_val")], source="test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"format": "yolo"},
            r"sets\.yaml: data set 'cells': Unknown format 'yolo'.*Known: coco, voc",
        ),
        ({"clases": ["a"]}, "Unknown key 'clases'. Did you mean 'classes'"),
        ({"split": None}, "has no 'split'; format voc needs name, format, root, split, classes"),
        ({"classes": []}, "has no 'classes'"),
        ({"classes": ["a", "a"]}, r"classes must be a list of different names, got \['a', 'a'\]"),
        ({"classes": "circle"}, "classes must be a list"),
        ({"evaluator": "cocoo"}, "Unknown evaluator 'cocoo'. Did you mean 'coco'"),
        ({"year": 2010}, "year must be 2007 or 2012, got 2010"),
        ({"root": "nowhere"}, r"root is 'nowhere', but there is no folder .*/nowhere"),
        ({"root": "$NOT_SET_ANYWHERE/x"}, "the environment variable NOT_SET_ANYWHERE is not set"),
        ({"split": "tset"}, r"there is no file .*ImageSets/Main/tset\.txt"),
    ],
)
def test_a_wrong_block_names_source_key_and_value(tmp_path, changes, message):
    write_voc(tmp_path)
    file = tmp_path / "sets.yaml"
    file.write_text(yaml.safe_dump({"DATASETS": [voc_block(tmp_path, **changes)]}))
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        register_datasets_file(str(file))


@pytest.mark.parametrize(
    "text",
    [
        "- a\n- b\n",
        "DATASET: []\n",
        "DATASETS: {name: a}\n",
        "DATASETS: [a]\n",
        "DATASETS:\n\t- a\n",
    ],
)
def test_a_file_of_another_form_is_named(tmp_path, text):
    (tmp_path / "sets.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"sets\.yaml"):
        register_datasets_file(str(tmp_path / "sets.yaml"))


def test_a_missing_file_names_the_variable():
    with pytest.raises(FileNotFoundError, match=r"FOCAL_DET_DATASETS names nowhere\.yaml"):
        register_datasets_file("nowhere.yaml")


@pytest.mark.parametrize("write,block", [(write_coco, coco_block), (write_voc, voc_block)])
def test_num_classes_is_checked_before_a_model_is_built(tmp_path, make_cfg, write, block):
    from detectron2.modeling import build_model

    write(tmp_path)
    overrides = ("MODEL.FOCAL_DET.DATASETS", [block(tmp_path)], "DATASETS.TRAIN", ("cells",))
    message = r"cells has 2 classes \(circle, square\), but MODEL\.RETINANET\.NUM_CLASSES is 5"
    with pytest.raises(ValueError, match=message):
        build_model(make_cfg(*overrides))
    build_model(make_cfg(*overrides, "MODEL.RETINANET.NUM_CLASSES", 2))


def test_classes_that_the_json_lacks_are_named(tmp_path, make_cfg):
    write_coco(tmp_path)
    register_datasets([coco_block(tmp_path, classes=["circle", "triangle"])], source="test")
    message = r"\['circle', 'triangle'\], but .*coco\.json has \['circle', 'square'\]"
    with pytest.raises(ValueError, match=message):
        prepare_datasets(make_cfg("DATASETS.TRAIN", ("cells",)), 2, "K")


@pytest.mark.parametrize("content", ['{"images": [', "[" * 100_000], ids=["cut off", "deep"])
def test_a_json_without_categories_is_named(content, tmp_path, make_cfg):
    write_coco(tmp_path)
    (tmp_path / "coco.json").write_text(content)
    register_datasets([coco_block(tmp_path)], source="test")
    with pytest.raises(ValueError, match=r"cells: .*coco\.json is not COCO json"):
        prepare_datasets(make_cfg("DATASETS.TRAIN", ("cells",)), 2, "K")


def test_json_boxes_without_area_are_left_out(tmp_path, caplog):
    write_coco(tmp_path)
    content = json.loads((tmp_path / "coco.json").read_text())
    content["annotations"][0]["bbox"] = [5, 5, 0, 9]
    (tmp_path / "coco.json").write_text(json.dumps(content))
    register_datasets([coco_block(tmp_path)], source="test")
    assert [len(x["annotations"]) for x in DatasetCatalog.get("cells")] == [1, 1, 0, 1]
    assert "Data set cells: 1 boxes without area, or non-finite, are left out" in caplog.text
    assert "0.png [5, 5, 0, 9]" in caplog.text


def test_digits_are_known_before_they_are_drawn(make_cfg):
    register_digits()
    register_digits()
    for name in ("digits_train", "digits_val", "digits_longtail_train"):
        assert MetadataCatalog.get(name).thing_classes == [str(i) for i in range(10)]
    cfg = make_cfg("DATASETS.TEST", ("digits_val", "a_set_of_somebody_else"))
    message = r"digits_val has 10 classes .*, but K is 9\. Set it to 10"
    with pytest.raises(ValueError, match=message):
        prepare_datasets(cfg, 9, "K")
