"""Faults of the data, each made in a copy of a real data set.

They are found before training, with the file, the id and what to do.
"""

import json
import logging
import math
import re

import cv2
import pytest
from detectron2.data.datasets.coco import convert_to_coco_json, load_coco_json

from focal_det.engine.trainer import Trainer
from focal_det.env import load_config
from tests.data.make_data import CLASSES, write_voc
from tests.faults.copies import CELLS, run_check, run_stock, write_voc_config


def truncate(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def set_box(*box):
    return lambda copy: copy.content["annotations"][0].update(bbox=list(box))


def change_images(change):
    return lambda copy: change(copy.images / copy.content["images"][0]["file_name"])


def halve(file):
    image = cv2.imread(str(file))
    cv2.imwrite(str(file), image[:64])


def shift_categories(copy):
    for entry, key in [(x, "id") for x in copy.content["categories"]] + [
        (x, "category_id") for x in copy.content["annotations"]
    ]:
        entry[key] = 3 * entry[key] + 5


FIRST, SECOND = "{image[0][file_name]}", "{image[1][file_name]}"
# Row: fault, how it is made in the copy, severity, what the message has, what Detectron2 does, what
# we do, what it is seen to do.
ROWS = {
    24: (
        "truncated image",
        change_images(truncate),
        "error",
        ["CHK222 image that cannot be decoded", FIRST, "get it again"],
        "stops when training comes to it, without the file's name",
        "names it before the training",
        r"stops in training, .*: OSError: image file is truncated$",
    ),
    25: (
        "file of 0 bytes, or no image",
        change_images(lambda x: x.write_bytes(b"")),
        "error",
        ["CHK221 empty image file", FIRST],
        "stops when training comes to it",
        "names it before the training",
        r"stops in training, .*: UnidentifiedImageError",
    ),
    26: (
        "missing image",
        change_images(lambda x: x.unlink()),
        "error",
        ["CHK220 missing image file", FIRST, "correct the folder"],
        "stops when training comes to it",
        "names it before the training",
        r"stops in training, .*: FileNotFoundError",
    ),
    27: (
        "width and height are not those of the file",
        change_images(halve),
        "error",
        [
            "CHK223 image size that differs from the annotations",
            f"{FIRST} is 128 x 64, but the annotations say 128 x 128",
        ],
        "stops when training comes to it",
        "both sizes, before the training",
        r"stops in training, .*: SizeMismatchError",
    ),
    28: (
        "category ids with gaps",
        shift_categories,
        "note",
        ["CHK122 category ids other than 1 to K", "8 (0) -> 0"],
        "maps them, and warns, but does not show the mapping",
        "shows the mapping",
        r"goes on with 29 of 29 boxes",
    ),
    29: (
        "annotation of an unknown category",
        lambda copy: copy.content["annotations"][0].update(category_id=77),
        "error",
        [
            "CHK307 annotation of an unknown category",
            "annotation {ann[id]} of {ann_image}",
            "category 77",
            "Known categories are",
        ],
        "stops, without image and annotation",
        "names image and annotation",
        r"stops in loading: KeyError: .*category_id=77",
    ),
    31: (
        "no usable annotation",
        lambda copy: copy.content["annotations"].clear(),
        "error",
        ["CHK130 training set without a usable annotation", "digits.json"],
        "stops, and says so",
        "names the file",
        r"stops in loading: AssertionError",
    ),
    32: (
        "image id given twice",
        lambda copy: copy.content["images"][1].update(id=copy.content["images"][0]["id"]),
        "error",
        [
            "CHK205 duplicate image id",
            f"id {{image[0][id]}} of {FIRST} and {SECOND}",
            "wrong image",
        ],
        "SILENT: the boxes land on the wrong image",
        "names both files",
        r"goes on",
    ),
    33: (
        "annotation id given twice",
        lambda copy: copy.content["annotations"][1].update(id=copy.content["annotations"][0]["id"]),
        "error",
        ["CHK300 duplicate annotation id", "annotation id {ann[id]}, 2 times"],
        "stops, without the id",
        "lists the ids; `--fix` renumbers",
        r"stops in loading: AssertionError: Annotation ids in .* are not unique",
    ),
    34: (
        "annotation without `id` or `bbox`",
        lambda copy: copy.content["annotations"][0].pop("bbox"),
        "error",
        ["CHK304 annotation without a required field", "annotation {ann[id]}", "no bbox"],
        "stops with a KeyError",
        "names annotation and field",
        r"stops in training, .*: KeyError: 'bbox'",
    ),
    35: (
        "annotation without `iscrowd` or `area`",
        lambda copy: copy.content["annotations"][0].pop("area"),
        "error",
        [
            "CHK302 annotation without iscrowd or area",
            "annotation {ann[id]} (image {ann[image_id]}): no area",
        ],
        "stops in the evaluation, after the training",
        "found before; `--fix` fills it in",
        r"stops in evaluation, after the training: KeyError: 'area'",
    ),
    45: (
        "`file_name` that leaves the folder of the images",
        lambda copy: copy.content["images"][0].update(
            file_name="../images/" + copy.content["images"][0]["file_name"]
        ),
        "warning",
        ["CHK207 file name outside the image folder", "../images/"],
        "opens it",
        "names it",
        r"goes on with 29 of 29 boxes",
    ),
}


@pytest.mark.parametrize("row", ROWS)
def test_a_fault_of_the_data_is_found_before_the_training(row, digits, capsys, fault):
    what, make, severity, parts, stock, ours, outcome = ROWS[row]
    names = {
        "image": json.loads(json.dumps(digits.content["images"])),
        "ann": dict(digits.content["annotations"][0]),
    }
    names["ann_image"] = next(
        x["file_name"] for x in names["image"] if x["id"] == names["ann"]["image_id"]
    )
    make(digits)
    digits.save()
    code, output = run_check(digits.write_config(), capsys)
    assert code == {"error": 2, "warning": 1, "note": 0}[severity]
    (line,) = [x for x in output.splitlines() if x.startswith(severity) and parts[0] in x]
    assert all(part.format(**names) in line for part in parts), line
    seen = run_stock(digits.json, digits.images)
    assert re.match(outcome, seen), seen
    fault(row, what, stock=stock, ours=ours, seen=seen)


def test_of_an_image_id_given_twice_detectron2_puts_the_boxes_on_the_other_image(digits):
    first, second = (x["file_name"] for x in digits.content["images"][:2])
    boxes = [
        x["bbox"]
        for x in digits.content["annotations"]
        if x["image_id"] == digits.content["images"][0]["id"]
    ]
    ROWS[32][1](digits)
    digits.save()
    logging.disable(logging.WARNING)
    records = load_coco_json(str(digits.json), str(digits.images))
    logging.disable(logging.NOTSET)
    of_second = [x for x in records if x["file_name"].endswith(second)]
    assert not [x for x in records if x["file_name"].endswith(first)]
    assert of_second and all(
        [y["bbox"] for y in x["annotations"]][: len(boxes)] == boxes for x in of_second
    )


BOXES = {
    "outside of the image": [200, 10, 20, 20],
    "without area": [10, 10, 0, 20],
    "negative": [10, 10, -5, 20],
    "NaN": [10, math.nan, 20, 20],
    "1e30": [10, 10, 1e30, 20],
}


@pytest.mark.parametrize("kind", BOXES)
def test_a_box_that_would_vanish_is_counted_and_named(kind, digits, capsys, fault):
    set_box(*BOXES[kind])(digits)
    digits.save()
    code, output = run_check(digits.write_config(), capsys)
    (line,) = [x for x in output.splitlines() if str(BOXES[kind]) in x]
    first = digits.content["annotations"][0]
    assert code >= 1 and f"annotation {first['id']}" in line and "--fix" in output
    fixed = digits.folder / "fixed.json"
    run_check(digits.write_config(), capsys, "--dataset", "copy", "--fix", fixed)
    assert (
        len(json.loads(fixed.read_text())["annotations"]) == len(digits.content["annotations"]) - 1
    )
    seen = run_stock(digits.json, digits.images)
    num_boxes = len(digits.content["annotations"])
    assert (
        seen
        == f"goes on with {num_boxes if kind == '1e30' else num_boxes - 1} of {num_boxes} boxes"
    )
    stock = "SILENT: left out in training, or cut if 1e30; still counted by the evaluator"
    ours = "counted and named; `--fix` takes it out"
    fault(
        30,
        "box outside of the image, without area, negative, NaN or 1e30",
        stock=stock,
        ours=ours,
        seen=f"{kind}: {seen}",
    )


def test_row_36_a_json_that_breaks_off(digits, capsys, fault):
    truncate(digits.json)
    code, output = run_check(digits.write_config(), capsys)
    assert code == 2 and "character" in output and str(digits.json) in output
    seen = run_stock(digits.json, digits.images)
    assert seen.startswith("stops in loading: JSONDecodeError") and digits.json.name not in seen
    fault(
        36,
        "truncated json",
        stock="stops, without the file's name",
        ours="file, line and character",
        seen=seen,
    )


def make_cells_block(folder):
    return {
        "name": "cells",
        "format": "voc",
        "root": str(folder),
        "split": "all",
        "classes": CELLS,
        "evaluator": "coco",
    }


def test_the_two_boxes_without_area_of_the_blood_cells_are_found(cells, capsys):
    code, output = run_check(write_voc_config(cells, make_cells_block(cells)), capsys)
    assert code == 1 and "CHK311 box without area (2)" in output
    assert (
        "BloodImage_00338 (RBC [504.0, 337.0, 504.0, 337.0])" in output
        and "BloodImage_00343" in output
    )


CELL_FAULTS = {
    24: (
        lambda folder: truncate(folder / "JPEGImages" / "BloodImage_00000.jpg"),
        ["cannot be decoded", "BloodImage_00000.jpg"],
    ),
    25: (
        lambda folder: (folder / "JPEGImages" / "BloodImage_00000.jpg").write_bytes(b"no"),
        ["decoded", "BloodImage_00000.jpg"],
    ),
    26: (
        lambda folder: (folder / "JPEGImages" / "BloodImage_00000.jpg").unlink(),
        ["has no image BloodImage_00000"],
    ),
    27: (
        lambda folder: halve(folder / "JPEGImages" / "BloodImage_00000.jpg"),
        ["CHK223", "640 x 64"],
    ),
    29: (
        lambda folder: rewrite(folder, "<name>WBC", "<name>WBCS"),
        ["Unknown class 'WBCS'. Did you mean 'WBC'"],
    ),
    30: (
        lambda folder: rewrite(folder, "<xmax>", "<xmax>9"),
        ["box that extends beyond the image", "BloodImage_00000.jpg"],
    ),
    32: (lambda folder: list_twice(folder), ["CHK212 repeated image id", "BloodImage_00000"]),
    34: (
        lambda folder: rewrite(folder, "xmin", "xmn"),
        ["BloodImage_00000.xml is not a VOC annotation"],
    ),
    36: (
        lambda folder: truncate(folder / "Annotations" / "BloodImage_00000.xml"),
        ["BloodImage_00000.xml is not a VOC"],
    ),
}


def rewrite(folder, old, new):
    file = folder / "Annotations" / "BloodImage_00000.xml"
    assert old in file.read_text()
    file.write_text(file.read_text().replace(old, new))


def list_twice(folder):
    file = folder / "ImageSets" / "Main" / "all.txt"
    file.write_text(file.read_text() + "\nBloodImage_00000\n")


@pytest.mark.parametrize("row", CELL_FAULTS)
def test_the_same_faults_are_found_in_voc_data(row, cells, capsys):
    make, parts = CELL_FAULTS[row]
    make(cells)
    code, output = run_check(write_voc_config(cells, make_cells_block(cells)), capsys)
    assert code >= 1 and all(part in output for part in parts), output


def test_row_42_a_stale_cache_of_annotations(tmp_path, clean_catalog, capsys, fault):
    """Detectron2 caches the COCO json it makes of VOC data, and evaluates later data with it."""
    write_voc(tmp_path)
    block = {
        "name": "shapes",
        "format": "voc",
        "root": str(tmp_path),
        "split": "train",
        "classes": CLASSES,
        "evaluator": "coco",
    }
    config = write_voc_config(tmp_path, block)
    cfg = load_config(config)
    run_check(config, capsys)  # registers the data set
    cache = tmp_path / "out" / "inference" / "shapes_coco_format.json"
    cache.parent.mkdir(parents=True)
    convert_to_coco_json("shapes", str(cache))
    assert "CHK411" not in run_check(config, capsys)[1]
    annotation = tmp_path / "Annotations" / "1.xml"
    annotation.write_text(annotation.read_text().replace("<name>square", "<name>circle"))
    code, output = run_check(config, capsys)
    assert code == 1 and "CHK411 outdated cache of annotations" in output and str(cache) in output
    before = cache.read_text()
    convert_to_coco_json("shapes", str(cache))
    assert cache.read_text() == before  # stock: the old ground truth
    Trainer.build_evaluator(cfg, "shapes")
    num_squares = [
        [x["category_id"] for x in json.loads(text)["annotations"]].count(1)
        for text in (before, cache.read_text())
    ]
    assert num_squares == [2, 1]
    stock = "SILENT: the old ground truth is used"
    fault(
        42,
        "stale `*_coco_format.json`",
        stock=stock,
        ours="reported; `focal-det train` regenerates it",
        seen="old ground truth",
    )
