"""Faults of dataset dicts, of data sets that are registered by code."""

import numpy as np
import pytest
from detectron2.structures import BoxMode

from focal_det.check import data_rules
from focal_det.check.findings import Findings
from focal_det.check.plan import Use
from focal_det.check.records import check_records
from tests.check.coco_files import get_rules

BOX = [10.0, 10.0, 40.0, 40.0]
ANNOTATION = {"bbox": BOX, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
OBJECTS = [
    ({"bbox": [np.float32(x) for x in BOX]}, None),
    ({"bbox": [np.int64(x) for x in BOX]}, None),
    ({"bbox": np.array(BOX), "bbox_mode": BoxMode.XYXY_ABS}, None),
    ({"bbox": np.array(BOX)}, data_rules.BOX_AS_ARRAY),
    ({"bbox": None}, data_rules.INCOMPLETE_OBJECT),
    ({"bbox": ["a", 2, 3, 4]}, data_rules.BOX_NOT_FINITE),
    ({"bbox": [1, 2, 3]}, data_rules.BOX_NOT_FINITE),
    ({"bbox": BOX, "bbox_mode": BoxMode.XYWH_REL}, data_rules.BOX_NOT_FINITE),
    ({"category_id": 2}, data_rules.UNKNOWN_CLASS),
]


def make_record(*annotations, **changes):
    record = {"file_name": "a.png", "image_id": 1, "height": 96, "width": 96}
    return {**record, "annotations": list(annotations), **changes}


@pytest.mark.parametrize(("changes", "rule"), OBJECTS)
def test_faulty_object_of_code_is_found(changes, rule):
    record = make_record({**ANNOTATION, **changes}, ANNOTATION)
    findings = Findings()
    check_records([record], "own", 2, findings)
    assert get_rules(findings, "error", "warning") == ([rule] if rule else [])


@pytest.mark.parametrize(
    ("changes", "place"),
    [
        ({"width": None}, "own: a.png has no width"),
        ({"width": "96"}, "own: a.png has width '96'"),
        ({"height": 0}, "own: a.png has height 0"),
        ({"file_name": None}, "own: None has no file_name"),
    ],
)
def test_faulty_image_of_code_is_found(changes, place):
    findings = Findings()
    records = [make_record(ANNOTATION, **changes), make_record(ANNOTATION)]
    check_records(records, "own", 2, findings, Use(is_test=False))
    (found,) = findings.get("error")
    assert found.rule is data_rules.INCOMPLETE_RECORD and place in str(found)


def test_record_without_a_list_of_objects_is_empty():
    findings = Findings()
    record = make_record(ANNOTATION)
    records = [{**record, "annotations": None}, record]
    check_records(records, "own", 2, findings, Use(is_test=False))
    assert findings.get("error") == []


def test_image_ids_matter_in_test_sets_only():
    """Listing an image twice is a way to show it more often."""
    record = make_record(ANNOTATION)
    records = [record, record, {**record, "image_id": None}]
    findings = Findings()
    check_records(records, "own", 2, findings, Use(is_test=False))
    assert findings.get("error") == []
    check_records(records, "own", 2, findings)
    assert get_rules(findings, "error") == [data_rules.REPEATED_IMAGE, data_rules.INVALID_RECORD_ID]
