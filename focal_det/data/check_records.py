"""Checks of Detectron2's dataset dicts: of VOC folders, and of data sets that are registered by code."""

from collections.abc import Mapping, Sequence
from typing import Any, Optional

import focal_det.host  # noqa: F401  (first: says how to get Detectron2)

from detectron2.structures import BoxMode

from focal_det.data.check_coco import describe_box_fault, note_empty_images
from focal_det.data.findings import Findings

_FIELDS = ("file_name", "image_id", "height", "width")
_LOST = "Training leaves them out or cuts them at the edge, and evaluation may still count them. Correct the annotations."


def check_records(records: Sequence[Mapping[str, Any]], name: str, num_classes: int, findings: Findings) -> None:
    """Check fields, ids, classes and boxes of the dataset dicts of data set `name`.

    Args:
        num_classes: K of the data set; class ids must be in 0..K-1.
    """
    first_of: dict[Any, str] = {}
    num_objects = [_check_record(x, name, num_classes, findings) for x in records]
    for record in records:
        image_id, file = record.get("image_id"), str(record.get("file_name"))
        if isinstance(image_id, (int, str)) and first_of.setdefault(image_id, file) is not file:
            place = f"{name}: id {image_id} of {first_of[image_id]} and {file}"
            findings.add("error", "image ids given twice", "Evaluation would mix the images: list each once.", place)
    if not sum(num_objects):
        findings.add("error", "data sets without a usable annotation", "There is nothing to train on.", name)
    note_empty_images(num_objects.count(0), len(records), name, findings)


def _check_record(record: Mapping[str, Any], name: str, num_classes: int, findings: Findings) -> int:
    """Number of objects that can be trained on."""
    where = f"{name}: {record.get('file_name')}"
    missing = [x for x in _FIELDS if record.get(x) is None]
    if missing:
        advice = "Have the code that loads the data set add them."
        findings.add("error", "dataset dicts without a field", advice, f"{where} has no {', '.join(missing)}")
        return 0
    if not isinstance(record["image_id"], (int, str)):
        place = f"{where}: {record['image_id']!r} is a {type(record['image_id']).__name__}"
        findings.add("error", "image ids that are neither int nor str", "Evaluation looks images up by them.", place)
    num_usable = 0
    for index, annotation in enumerate(record.get("annotations", ())):
        fault = _find_fault(annotation, record, num_classes)
        if fault is None:
            num_usable += not annotation.get("iscrowd", 0)
        else:
            severity, what, advice, value = fault
            size = f"{record['width']} x {record['height']}"
            place = f"{where} (image {record['image_id']}, {size}), object {index}: {value}"
            findings.add(severity, what, advice, place)
    return num_usable


def _find_fault(annotation: Mapping[str, Any], record: Mapping[str, Any], num_classes: int) -> Optional[tuple[str, str, str, str]]:
    """Severity, kind, advice and value of the first fault of an object."""
    missing = [x for x in ("bbox", "bbox_mode", "category_id") if x not in annotation]
    if missing:
        advice = "Have the code that loads the data set add it."
        return "error", "objects without a field", advice, f"no {', '.join(missing)}"
    class_id = annotation["category_id"]
    if class_id not in range(num_classes):
        advice = f"Class ids are 0 to {num_classes - 1}, one for each of thing_classes."
        return "error", "objects of unknown classes", advice, f"category_id {class_id!r}"
    if annotation["bbox_mode"] == BoxMode.XYWHA_ABS:
        return None
    box = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYWH_ABS)
    what = describe_box_fault(box, record)
    if what is None:
        return None
    severity = "error" if "numbers" in what else "warning"
    return severity, what, _LOST, f"{[round(float(x), 2) for x in annotation['bbox']]}"
