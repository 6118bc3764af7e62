"""One definition of a usable box, for every loader, check and correction."""

import json
import math

import pytest
from detectron2.data import DatasetCatalog
from detectron2.structures import BoxMode

from focal_det.check.annotations import find_annotation_fault
from focal_det.check.data_rules import BOX_CUT
from focal_det.check.findings import Findings
from focal_det.check.fix import fix_coco
from focal_det.check.records import check_records
from focal_det.data.boxes import BoxFault, find_box_fault, is_usable
from focal_det.data.catalog import register_datasets
from focal_det.data.voc import read_voc
from tests.data.make_data import write_annotation, write_coco, write_voc

SIZE = (96, 96)


@pytest.mark.parametrize(
    ("box", "fault"),
    [
        ([0, 0, 96, 96], None),
        ([-2, 0, 10, 10], BoxFault.CUT),
        ([-1, -0.5, 10, 10], None),
        ([0, 0, 97, 96], None),  # a pixel more is rounding
        ([0, 0, -5, 9], BoxFault.NO_AREA),
        ([96, 0, 5, 5], BoxFault.OUTSIDE),
        ([0, 0, 1e30, 5], BoxFault.NOT_FINITE),
        ([0, 0, math.nan, 5], BoxFault.NOT_FINITE),
        ([0, 0, True, 5], BoxFault.NOT_FINITE),
        ([0, 0, 5], BoxFault.NOT_FINITE),
        (None, BoxFault.NOT_FINITE),
    ],
)
def test_first_fault_of_a_box(box, fault):
    assert find_box_fault(box, SIZE) is fault
    assert is_usable(box, SIZE) == (fault in (None, BoxFault.CUT))


# x, y, width, height, and whether an object with it can be trained on.
BOXES = {
    "good": ([10, 10, 20, 20], True),
    "NaN corner": ([math.nan, 10, 20, 20], False),
    "NaN width": ([10, 10, math.nan, 20], False),
    "infinite width": ([10, 10, math.inf, 20], False),
    "huge width": ([10, 10, 1e30, 20], False),
    "zero area": ([10, 10, 0, 20], False),
    "negative": ([10, 10, -5, 20], False),
    "cut": ([80, 10, 40, 20], True),
}
# Loaders leave these to Detectron2, which drops them where images are cropped as well.
OUTSIDE = {"outside": ([200, 10, 20, 20], False)}


@pytest.fixture
def content(tmp_path):
    write_coco(tmp_path)
    return json.loads((tmp_path / "coco.json").read_text())


@pytest.mark.parametrize("name", {**BOXES, **OUTSIDE})
def test_checks_and_fix_agree_on_usable_boxes(name, content):
    box, is_good = {**BOXES, **OUTSIDE}[name]
    assert is_usable(box, SIZE) == is_good
    annotation = {**content["annotations"][0], "bbox": box}
    content["annotations"][0] = annotation
    images = {x["id"]: x for x in content["images"]}
    names = {x["id"]: x["name"] for x in content["categories"]}
    fault = find_annotation_fault(annotation, images, names)
    assert (fault is None or fault[0] is BOX_CUT) == is_good
    fixed, _ = fix_coco(content)
    assert (annotation["id"] in {x["id"] for x in fixed["annotations"]}) == is_good
    findings = Findings()
    record = {"file_name": "a.png", "image_id": 1, "height": 96, "width": 96}
    record["annotations"] = [{"bbox": box, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}]
    check_records([record], "own", 1, findings)
    found = [x.rule for x in findings if x.rule.id.startswith("CHK31")]
    assert (found in ([], [BOX_CUT])) == is_good


@pytest.mark.parametrize("name", BOXES)
def test_loaders_leave_out_unusable_boxes(name, tmp_path, clean_catalog):
    box, is_good = BOXES[name]
    write_coco(tmp_path / "coco")
    file = tmp_path / "coco" / "coco.json"
    content = json.loads(file.read_text())
    content["annotations"] = [{**content["annotations"][0], "bbox": box}]
    file.write_text(json.dumps(content))
    block = {"name": "boxes", "format": "coco", "json": "coco.json", "images": "images"}
    register_datasets([block], source="test", base=tmp_path / "coco")
    first, *_ = DatasetCatalog.get("boxes")
    assert len(first["annotations"]) == is_good
    write_voc(tmp_path / "voc")
    x, y, width, height = box
    annotation = [("circle", [x, y, x + width, y + height])]
    write_annotation(tmp_path / "voc" / "Annotations" / "0.xml", annotation)
    records, left_out = read_voc(tmp_path / "voc", "train", ["circle", "square"], "voc")
    assert len(records[0]["annotations"]) == is_good
    assert len(left_out) == (not is_good)
