"""VOC folders: Detectron2's dicts for correct data, the file and the fix for data that is not."""

import os

import pytest
from detectron2.data.datasets.pascal_voc import load_voc_instances

from focal_det.data.voc import load_voc
from tests.data.make_data import CLASSES, OBJECTS, write_annotation, write_voc

BCCD = os.environ.get("FOCAL_DET_BCCD")


def test_correct_data_gives_detectron2s_dicts(tmp_path):
    write_voc(tmp_path)
    ours, theirs = (
        load_voc(tmp_path, "train", CLASSES, "cells"),
        load_voc_instances(str(tmp_path), "train", CLASSES),
    )
    assert ours == theirs
    assert [a["bbox"] for a in ours[0]["annotations"]] == [box for _, box in OBJECTS[0]]


def test_other_image_types_and_class_lists_with_flags_are_read(tmp_path):
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
        "Data set cells: 1 boxes without area are left out: 1 (circle [20.0, 20.0, 20.0, 20.0])"
        in caplog.text
    )


@pytest.mark.parametrize(
    ("spoil", "error", "message"),
    [
        (lambda r: write_annotation(r / "Annotations/1.xml", [("sqare", [1, 1, 9, 9])]), ValueError,
         r"1\.xml: Unknown class 'sqare'. Did you mean 'square'"),
        (lambda r: write_annotation(r / "Annotations/1.xml", [("CIRCLE", [1, 1, 9, 9])]), ValueError,
         r"1\.xml: Unknown class 'CIRCLE'. Did you mean 'circle'"),
        (lambda r: (r / "Annotations/1.xml").write_text("<annotation><size>"), ValueError, r"1\.xml is not a VOC annotation"),
        (lambda r: (r / "Annotations/1.xml").write_text("<annotation></annotation>"), ValueError, r"needs size/width"),
        (lambda r: (r / "Annotations/1.xml").unlink(), FileNotFoundError, r"1\.xml"),
        (lambda r: (r / "JPEGImages/1.jpg").unlink(), FileNotFoundError, r"JPEGImages has no image 1"),
        (lambda r: (r / "ImageSets/Main/train.txt").write_text("0\n1\0\n"), ValueError,
         r"train\.txt, line 2: '1\\x00' is not a file name"),
        (lambda r: (r / "ImageSets/Main/train.txt").unlink(), FileNotFoundError, r"train\.txt does not exist.*Known: val"),
    ],
)  # fmt: skip
def test_data_that_is_not_correct_names_the_file(tmp_path, spoil, error, message):
    write_voc(tmp_path)
    spoil(tmp_path)
    with pytest.raises(error, match=message):
        load_voc(tmp_path, "train", CLASSES, "cells")


@pytest.mark.skipif(not BCCD, reason="FOCAL_DET_BCCD does not name the blood-cell data")
def test_the_two_boxes_without_area_of_the_blood_cells_are_reported(caplog):
    from pathlib import Path

    records = load_voc(Path(BCCD), "trainval", ["RBC", "WBC", "Platelets"], "blood")
    theirs = load_voc_instances(BCCD, "trainval", ["RBC", "WBC", "Platelets"])
    assert len(records) == 292
    assert (
        sum(len(x["annotations"]) for x in theirs) - sum(len(x["annotations"]) for x in records)
        == 2
    )
    assert "blood: 2 boxes without area" in caplog.text
    assert "BloodImage_00338 (RBC" in caplog.text and "BloodImage_00343 (RBC" in caplog.text
