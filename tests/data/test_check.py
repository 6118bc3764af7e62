"""Checks of data: each fault that is made is found, with its place and what to do, and nothing else is."""

import json
import math

import cv2
import pytest

from focal_det.data.check_annotations import describe_box_fault
from focal_det.data.check_coco import check_coco, read_coco
from focal_det.data.check_images import check_images, check_overlap
from focal_det.data.check_records import check_records
from focal_det.data.findings import Findings
from focal_det.data.fix_coco import fix_coco
from tests.data.make_data import write_coco, write_images


@pytest.fixture
def coco(tmp_path):
    """A correct COCO json: its file and content."""
    write_coco(tmp_path)
    return tmp_path / "coco.json", json.loads((tmp_path / "coco.json").read_text())


def check(file, content):
    findings = Findings()
    check_coco(content, file, findings)
    return findings


def test_nothing_is_wrong_with_correct_data_but_an_empty_image_is_noted(coco):
    findings = list(check(*coco))
    assert [x.severity for x in findings] == ["note"] and "1 of 4" in str(findings[0])
    assert check(*coco).exit_code == 0


FAULTS = {
    "image ids given twice": (lambda c: c["images"][1].update(id=1), "id 1 of 0.png and 1.png", "error"),
    "images without a field": (lambda c: c["images"][0].pop("width"), "has no width", "error"),
    "file names that leave the folder": (lambda c: c["images"][0].update(file_name="../0.png"), "image 1, ../0.png", "warning"),
    "annotation ids given more than once": (lambda c: c["annotations"][1].update(id=1), "annotation id 1, 2 times", "error"),
    "annotations without a field": (lambda c: c["annotations"][1].pop("bbox"), "no bbox", "error"),
    "annotations without iscrowd": (lambda c: c["annotations"][2].pop("iscrowd"), "annotation 3 (image 2): no iscrowd", "error"),
    "annotations of unknown images": (lambda c: c["annotations"][0].update(image_id=77), "annotation 1: image 77", "error"),
    "annotations of unknown categories": (
        lambda c: c["annotations"][0].update(category_id=9),
        "0.png (image 1, 96 x 96): category 9",
        "error",
    ),
    "boxes without area": (
        lambda c: c["annotations"][0].update(bbox=[8, 10, 0, 36]),
        "annotation 1 of 0.png (image 1, 96 x 96): [8, 10, 0, 36]",
        "warning",
    ),
    "boxes outside of the image": (
        lambda c: c["annotations"][0].update(bbox=[200, 0, 9, 9]),
        "(image 1, 96 x 96): [200, 0, 9, 9]",
        "warning",
    ),
    "boxes that reach out": (lambda c: c["annotations"][0].update(bbox=[60, 60, 50, 20]), "[60, 60, 50, 20]", "warning"),
    "four finite numbers": (lambda c: c["annotations"][0].update(bbox=[8, math.nan, 36, 36]), "[8, nan, 36, 36]", "error"),
    "image ids of different types": (lambda c: c["images"][0].update(id="a"), "int, str", "error"),
    "images whose id is no id": (lambda c: c["images"][0].update(id=1e30), "id is 1e+30", "error"),
    "images whose name or size": (lambda c: c["images"][0].update(width="96"), '"width": "96"', "error"),
    "image files listed more than once": (lambda c: c["images"][1].update(file_name="0.png"), "0.png as ids 1, 2", "warning"),
    "categories that have no id or name": (lambda c: c["categories"][0].pop("name"), '{"id": 1}', "error"),
    "categories of the same name": (lambda c: c["categories"][0].update(name="square"), "square", "warning"),
    "annotation id 0": (lambda c: c["annotations"][0].update(id=0), "coco.json", "warning"),
    "id is not a whole number": (lambda c: c["annotations"][0].update(id="x"), 'annotation "x"', "error"),
    "iscrowd is not 0 or 1": (lambda c: c["annotations"][0].update(ignore=1), "ignore 1", "error"),
    "area is no number": (lambda c: c["annotations"][0].update(area=None), "area None", "error"),
    "outline has no polygon": (lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]]), "[[1, 2, 3, 4]]", "warning"),
    "segmentation is none": (lambda c: c["annotations"][0].update(segmentation={"size": 3}), "{'size': 3}", "error"),
    "keypoints are not numbers": (lambda c: c["annotations"][0].update(keypoints=["a"]), "['a']", "error"),
    "category ids have gaps": (lambda c: c["categories"].append({"id": 7, "name": "late"}), "7 (late) -> 2", "note"),
    "without a usable annotation": (lambda c: c["annotations"].clear(), "coco.json", "error"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_is_found_with_its_place(what, coco):
    file, content = coco
    make_fault, place, severity = FAULTS[what]
    make_fault(content)
    (found,) = [x for x in check(file, content) if what in x.what]
    assert found.severity == severity and place in str(found) and str(file) in str(found) and found.count == 1


def test_of_many_places_the_first_are_shown_and_the_rest_counted(coco):
    file, content = coco
    for annotation in content["annotations"]:
        annotation["bbox"][2] = 0
    (found,) = [x for x in check(file, content) if x.what == "boxes without area"]
    assert found.count == 4 and len(found.places) == 3 and "; and 1 more" in str(found)


def test_a_file_that_breaks_off_is_named_with_the_place(tmp_path):
    write_coco(tmp_path)
    file, findings = tmp_path / "coco.json", Findings()
    text = file.read_text()
    file.write_text(text[: len(text) // 2])
    assert read_coco(file, findings) is None and findings.exit_code == 2
    assert f"of {len(text) // 2})" in str(next(iter(findings))) and str(file) in str(next(iter(findings)))
    file.write_text('{"images": []}')
    assert read_coco(file, findings) is None and "no list under categories, annotations" in str(list(findings)[1])


FOR_A_PERSON = {x for x in FAULTS if x.startswith(("image", "file names", "categories"))} | {"without a usable annotation"}


@pytest.mark.parametrize("what", FAULTS)
def test_what_can_be_corrected_is_corrected_in_a_copy(what, coco):
    file, content = coco
    FAULTS[what][0](content)
    before = json.dumps(content)
    fixed, changes = fix_coco(content)
    assert json.dumps(content) == before  # the original is as it was
    left = {x.what for x in check(file, fixed) if x.severity != "note"}
    assert bool(left) == (what in FOR_A_PERSON)
    if what not in FOR_A_PERSON:
        assert changes or what == "category ids have gaps"


@pytest.mark.parametrize(
    ("box", "fault"),
    [
        ([0, 0, 96, 96], None),
        ([-2, 0, 10, 10], "reach out"),
        ([-1, -0.5, 10, 10], None),
        ([0, 0, 97, 96], None),  # a pixel more is rounding
        ([0, 0, -5, 9], "without area"),
        ([96, 0, 5, 5], "outside"),
        ([0, 0, 1e30, 5], "four finite numbers"),
        ([0, 0, 5], "four finite numbers"),
        (None, "four finite numbers"),
    ],
)
def test_boxes(box, fault):
    found = describe_box_fault(box, {"width": 96, "height": 96})
    assert found is None if fault is None else fault in found


def test_images_are_decoded(tmp_path):
    files = write_images(tmp_path, suffix=".jpg")
    records = [{"file_name": str(x), "width": 96, "height": 96} for x in files]
    findings = Findings()
    check_images(records, findings)
    assert [(x.severity, x.what, x.places) for x in findings] == [("note", "images of a single colour", [str(files[2])])]
    findings = Findings()
    files[0].write_bytes(files[0].read_bytes()[:-200])
    files[1].write_bytes(b"")
    files[2].write_bytes(b"no image")
    cv2.imwrite(str(files[3]), cv2.imread(str(files[3]))[:50])
    check_images([*records, {"file_name": str(tmp_path / "none.jpg")}], findings)
    found = {x.what: str(x) for x in findings}
    assert len(found) == 4 and all(x.severity == "error" for x in findings)
    decoded = found["images that cannot be decoded"]
    assert "(2)" in decoded and "0.jpg: image file is truncated" in decoded and "2.jpg" in decoded
    assert "1.jpg" in found["image files without content"] and "none.jpg" in found["images that do not exist"]
    assert "3.jpg is 96 x 50, the annotations say 96 x 96" in found["images of another size than the annotations say"]
