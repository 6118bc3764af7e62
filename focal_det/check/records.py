"""Checks of Detectron2's dataset dicts: of VOC folders, and of data sets that are registered by code."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import numpy as np
from detectron2.structures import BoxMode

from .annotations import describe_box_fault
from .coco import check_not_empty, note_empty_images
from .findings import Findings

_FIELDS = ("file_name", "height", "width")
_LOST = "Training leaves them out or cuts them at the edge, and evaluation may still count them. Correct the annotations."


def check_records(
    records: Sequence[Mapping[str, Any]],
    name: str,
    num_classes: int,
    findings: Findings,
    *,
    is_train: bool = True,
    is_test: bool = True,
    filter_empty: bool = True,
) -> None:
    """Check fields, ids, classes and boxes of the dataset dicts of data set `name`.

    Args:
        num_classes: K of the data set; class ids must be in 0..K-1.
        is_train: whether it is trained on, for which there must be objects.
        is_test: whether it is evaluated on, for which there must be image ids, each given once.
        filter_empty: whether training leaves out images without objects.
    """
    num_objects = [_check_record(x, name, num_classes, findings) for x in records]
    if is_test:
        _check_ids(records, name, findings)
    check_not_empty(sum(num_objects), f"{name}: {len(records)} images", findings, is_train)
    if sum(num_objects):
        empty = {"is_train": is_train, "filter_empty": filter_empty}
        note_empty_images(num_objects.count(0), len(records), name, findings, **empty)


def _check_ids(records: Sequence[Mapping[str, Any]], name: str, findings: Findings) -> None:
    first_of: dict[Any, str] = {}
    for record in records:
        image_id, file = record.get("image_id"), str(record.get("file_name"))
        if not isinstance(image_id, (int, str)):
            place = f"{name}: {file}: {image_id!r} is a {type(image_id).__name__}"
            findings.add(
                "error",
                "image ids that are neither int nor str",
                "Evaluation looks images up by them.",
                place,
            )
        elif image_id in first_of:
            place = f"{name}: id {image_id} of {first_of[image_id]} and {file}"
            findings.add(
                "error",
                "image ids given twice",
                "Evaluation would mix the images: list each once.",
                place,
            )
        else:
            first_of[image_id] = file


def _check_record(
    record: Mapping[str, Any], name: str, num_classes: int, findings: Findings
) -> int:
    """Number of objects that can be trained on."""
    where = f"{name}: {record.get('file_name')}"
    missing = [x for x in _FIELDS if record.get(x) is None]
    if missing:
        advice = "Have the code that loads the data set add them."
        findings.add(
            "error", "dataset dicts without a field", advice, f"{where} has no {', '.join(missing)}"
        )
        return 0
    num_usable = 0
    for index, annotation in enumerate(record.get("annotations", ())):
        fault = _find_fault(annotation, record, num_classes)
        if fault is None:
            num_usable += not annotation.get("iscrowd", 0)
        else:
            severity, what, advice, value = fault
            size = f"{record['width']} x {record['height']}"
            place = f"{where} (image {record.get('image_id')}, {size}), object {index}: {value}"
            findings.add(severity, what, advice, place)
    return num_usable


def _find_fault(
    annotation: Mapping[str, Any], record: Mapping[str, Any], num_classes: int
) -> Optional[tuple[str, str, str, str]]:
    """Severity, kind, advice and value of the first fault of an object."""
    missing = [x for x in ("bbox", "bbox_mode", "category_id") if annotation.get(x) is None]
    if missing:
        advice = "Have the code that loads the data set add it."
        return "error", "objects without a field", advice, f"no {', '.join(missing)}"
    class_id, mode, values = annotation["category_id"], annotation["bbox_mode"], annotation["bbox"]
    if class_id not in range(num_classes):
        advice = f"Class ids are 0 to {num_classes - 1}, one for each of thing_classes."
        return "error", "objects of unknown classes", advice, f"category_id {class_id!r}"
    if mode == BoxMode.XYWHA_ABS:
        return None
    if isinstance(values, np.ndarray) and mode != BoxMode.XYXY_ABS:
        advice = "Detectron2 wants an array for each image or a list for each box: make it a list."
        return "error", "boxes that are arrays", advice, f"{values!r} of {mode}"
    try:
        box = BoxMode.convert([float(x) for x in values], mode, BoxMode.XYWH_ABS)
    except (TypeError, ValueError, AssertionError, NotImplementedError):
        return (
            "error",
            "boxes that are not four finite numbers",
            "Correct the annotations.",
            f"{values!r}",
        )
    what = describe_box_fault(box, record)
    if what is None:
        return None
    return (
        "error" if "numbers" in what else "warning",
        what,
        _LOST,
        f"{[round(float(x), 2) for x in values]}",
    )
