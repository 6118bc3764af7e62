"""Checks of Detectron2's dataset dicts, from VOC folders or data sets registered by code."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np
from detectron2.structures import BoxMode

from focal_det.data.boxes import find_box_fault, is_number

from .annotations import BOX_RULES
from .data_rules import (
    BOX_AS_ARRAY,
    BOX_NOT_FINITE,
    INCOMPLETE_OBJECT,
    INCOMPLETE_RECORD,
    INVALID_RECORD_ID,
    REPEATED_IMAGE,
    UNKNOWN_CLASS,
)
from .empty import check_not_empty, note_empty_images
from .findings import Findings
from .plan import ANY_USE, Use
from .rules import Rule

_FIELDS = ("file_name", "height", "width")
_OBJECT_FIELDS = ("bbox", "bbox_mode", "category_id")


def check_records(
    records: Sequence[Mapping[str, Any]],
    name: str,
    num_classes: int,
    findings: Findings,
    use: Use = ANY_USE,
) -> None:
    """Check fields, ids, classes and boxes of the dataset dicts of data set `name`.

    Args:
        num_classes: K of the data set; class ids must be in 0..K-1.
    """
    num_objects = [_check_record(x, name, num_classes, findings) for x in records]
    # In a set that is only trained on, an image may be listed twice to be shown more often.
    if use.is_test:
        _check_ids(records, name, findings)
    check_not_empty(sum(num_objects), f"{name}: {len(records)} images", findings, use)
    if sum(num_objects):
        note_empty_images(num_objects.count(0), len(records), name, findings, use)


def _check_ids(records: Sequence[Mapping[str, Any]], name: str, findings: Findings) -> None:
    first_of: dict[Any, str] = {}
    for record in records:
        image_id = record.get("image_id")
        file = str(record.get("file_name"))
        # All evaluators use image ids as keys of a dict.
        if not isinstance(image_id, (int, str)):
            kind = type(image_id).__name__
            findings.add(INVALID_RECORD_ID, f"{name}: {file}: {image_id!r} is a {kind}")
        elif image_id in first_of:
            place = f"{name}: id {image_id} of {first_of[image_id]} and {file}"
            findings.add(REPEATED_IMAGE, place)
        else:
            first_of[image_id] = file


def _check_record(
    record: Mapping[str, Any], name: str, num_classes: int, findings: Findings
) -> int:
    """Number of objects that can be trained on."""
    where = f"{name}: {record.get('file_name')}"
    for field in _FIELDS:
        value: Any = record.get(field)
        is_valid = bool(value) if field == "file_name" else is_number(value) and value > 0
        if not is_valid:
            what = f"has no {field}" if value is None else f"has {field} {value!r}"
            findings.add(INCOMPLETE_RECORD, f"{where} {what}")
            return 0
    num_usable = 0
    for index, annotation in enumerate(record.get("annotations") or ()):
        fault = _find_fault(annotation, record, num_classes)
        if fault is None:
            num_usable += not annotation.get("iscrowd", 0)
            continue
        rule, value = fault
        size = f"{record['width']} x {record['height']}"
        place = f"{where} (image {record.get('image_id')}, {size}), object {index}: {value}"
        fields: dict[str, Any] = {}
        if rule is UNKNOWN_CLASS:
            fields["last"] = num_classes - 1
        findings.add(rule, place, **fields)
    return num_usable


def _find_fault(
    annotation: Mapping[str, Any], record: Mapping[str, Any], num_classes: int
) -> Optional[tuple[Rule, str]]:
    """The first fault of an object, and the value that is wrong."""
    missing = [x for x in _OBJECT_FIELDS if annotation.get(x) is None]
    if missing:
        return INCOMPLETE_OBJECT, f"no {', '.join(missing)}"
    if annotation["category_id"] not in range(num_classes):
        return UNKNOWN_CLASS, f"category_id {annotation['category_id']!r}"
    return _find_box_fault(annotation, record)


def _find_box_fault(
    annotation: Mapping[str, Any], record: Mapping[str, Any]
) -> Optional[tuple[Rule, str]]:
    mode = annotation["bbox_mode"]
    values = annotation["bbox"]
    # Rotated boxes are for models that are not checked here.
    if mode == BoxMode.XYWHA_ABS:
        return None
    if isinstance(values, np.ndarray) and mode != BoxMode.XYXY_ABS:
        return BOX_AS_ARRAY, f"{values!r} of {mode}"
    try:
        box = BoxMode.convert([float(x) for x in values], mode, BoxMode.XYWH_ABS)
    # `convert` asserts four numbers, and raises NotImplementedError for modes it does not know.
    except (TypeError, ValueError, AssertionError, NotImplementedError):
        return BOX_NOT_FINITE, repr(values)
    fault = find_box_fault(box, (record["width"], record["height"]))
    if fault is None:
        return None
    return BOX_RULES[fault], str([round(float(x), 2) for x in values])
