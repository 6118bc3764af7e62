"""VOC folders: Detectron2's dicts for correct data, the file and the fix for data that is not."""

import os

import pytest
from detectron2.data.datasets.pascal_voc import load_voc_instances

from focal_det.data.voc import load_voc
from tests.data.make_data import CLASSES, OBJECTS, write_annotation, write_voc

BCCD = os.environ.get("FOCAL_DET_BCCD")


def test_correct_data_gives_detectron2s_dicts(tmp_path):
    write_voc(tmp_path)
    ours = load_voc(tmp_path, "train", CLASSES, "cells")
    assert ours == load_voc_instances(str(tmp_path), "train", CLASSES)
    assert [a["bbox"] for a in ours[0]["annotations"]] == [box for _, box in OBJECTS[0]]


def test_png_images_and_lists_with_flags_are_read(tmp_path):
    write_voc(tmp_path, ".png")
    (tmp_path / "ImageSets" / "Main" / "train.txt").write_text("0  1\n\n3 -1\n")
    assert [x["image_id"] for x in load_voc(tmp_path, "train", CLASSES, "cells")] == ["0", "3"]


def test_boxes_without_area_are_reported_and_left_out(tmp_path, caplog):
    write_voc(tmp_path)
    # Written as xmin = xmax = 20, a click without a drag; Detectron2 reads it as one pixel.
    write_annotation(
        tmp_path / "Annotations" / "1.xml",
        [("circle", [19, 19, 20, 20]), ("square", [20, 20, 60, 60])],
    )
    records = load_voc(tmp_path, "train", CLASSES, "cells")
    assert [a["bbox"] for a in records[1]["annotations"]] == [[20, 20, 60, 60]]
    assert (
        "Data set cells: 1 boxes without area, or non-finite, are left out: "
        "1 (circle [20.0, 20.0, 20.0, 20.0])" in caplog.text
    )


XML = "Annotations/1.xml"
LIST = "ImageSets/Main/train.txt"


def write_class(name):
    return lambda root: write_annotation(root / XML, [(name, [1, 1, 9, 9])])


def write(file, text):
    return lambda root: (root / file).write_text(text)


def remove(file):
    return lambda root: (root / file).unlink()


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (write_class("sqare"), ValueError, r"1\.xml: Unknown class 'sqare'. Did you mean 'square'"),
        (
            write_class("CIRCLE"),
            ValueError,
            r"1\.xml: Unknown class 'CIRCLE'. Did you mean 'circle'",
        ),
        (write(XML, "<annotation><size>"), ValueError, r"1\.xml is not a VOC annotation"),
        (write(XML, "<annotation></annotation>"), ValueError, "needs size/width"),
        (remove(XML), FileNotFoundError, r"1\.xml"),
        (remove("JPEGImages/1.jpg"), FileNotFoundError, "JPEGImages has no image 1"),
        (write(LIST, "0\n1\0\n"), ValueError, r"train\.txt, line 2: '1\\x00' is not a file name"),
        (remove(LIST), FileNotFoundError, r"train\.txt does not exist.*Known: val"),
    ],
)
def test_incorrect_data_is_named_by_its_file(tmp_path, spoil, error, message):
    write_voc(tmp_path)
    spoil(tmp_path)
    with pytest.raises(error, match=message):
        load_voc(tmp_path, "train", CLASSES, "cells")


@pytest.mark.skipif(not BCCD, reason="FOCAL_DET_BCCD does not name the blood-cell data")
def test_blood_cells_have_two_boxes_without_area(caplog):
    from pathlib import Path

    records = load_voc(Path(BCCD), "trainval", ["RBC", "WBC", "Platelets"], "blood")
    theirs = load_voc_instances(BCCD, "trainval", ["RBC", "WBC", "Platelets"])
    assert len(records) == 292
    num_theirs = sum(len(x["annotations"]) for x in theirs)
    assert num_theirs - sum(len(x["annotations"]) for x in records) == 2
    assert "blood: 2 boxes without area" in caplog.text
    assert "BloodImage_00338 (RBC" in caplog.text and "BloodImage_00343 (RBC" in caplog.text
