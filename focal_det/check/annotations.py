"""Checks of COCO annotations: ids, fields and boxes one by one, and duplicates."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from focal_det.data.boxes import MAX_SIDE, BoxFault, find_box_fault, is_number
from focal_det.messages import shorten

from .box_format import check_form
from .data_rules import (
    ANNOTATION_ID_ZERO,
    BOX_CUT,
    BOX_NOT_FINITE,
    BOX_OUTSIDE,
    BOX_WITHOUT_AREA,
    DUPLICATE_ANNOTATION_ID,
    DUPLICATE_OBJECT,
    INCOMPLETE_ANNOTATION,
    INVALID_ANNOTATION_ID,
    INVALID_AREA,
    INVALID_CROWD,
    INVALID_KEYPOINTS,
    INVALID_OUTLINE,
    INVALID_SEGMENTATION,
    NO_CROWD_OR_AREA,
    UNKNOWN_CATEGORY,
    UNKNOWN_IMAGE,
)
from .findings import Findings
from .rules import Rule
from .values import is_id, is_whole

BOX_RULES = {
    BoxFault.NOT_FINITE: BOX_NOT_FINITE,
    BoxFault.NO_AREA: BOX_WITHOUT_AREA,
    BoxFault.OUTSIDE: BOX_OUTSIDE,
    BoxFault.CUT: BOX_CUT,
}
_REQUIRED_FIELDS = ("id", "image_id", "category_id", "bbox")
_OBJECT_FIELDS = ("image_id", "category_id", "bbox", "segmentation", "keypoints")
_MAX_SHOWN = 80  # characters of an annotation without an id
_MAX_SHOWN_OUTLINE = 60


def check_annotations(
    annotations: Sequence[dict[str, Any]],
    images: dict,
    category_names: dict,
    file: Path,
    findings: Findings,
    *,
    is_test: bool,
) -> int:
    """Check the annotations of a COCO JSON.

    Args:
        images: images by id, with "file_name", and "width" and "height" in pixels.
        category_names: names of categories by id.
        file: the file that holds the annotations, for messages.
        is_test: whether the data set is used for evaluation, which needs `iscrowd` and `area`.

    Returns:
        Number of annotations usable for training.
    """
    _check_ids(annotations, file, findings)
    _check_evaluated_fields(annotations, file, findings, is_test)
    _check_duplicates(annotations, file, findings)
    check_form(annotations, images, category_names, file, findings)
    return sum(_check_annotation(x, images, category_names, file, findings) for x in annotations)


def _check_ids(annotations: Sequence[dict[str, Any]], file: Path, findings: Findings) -> None:
    counts = Counter(x["id"] for x in annotations if is_whole(x.get("id")))
    for annotation_id, count in counts.items():
        if count > 1:
            place = f"{file}: annotation id {annotation_id}, {count} times"
            findings.add(DUPLICATE_ANNOTATION_ID, place)
    # pycocotools takes the id 0 of a matched object for "not matched".
    if 0 in counts:
        findings.add(ANNOTATION_ID_ZERO, str(file))


def _check_evaluated_fields(
    annotations: Sequence[dict[str, Any]], file: Path, findings: Findings, is_test: bool
) -> None:
    # pycocotools cannot evaluate without these fields; training can do without.
    severity = "error" if is_test else "warning"
    for annotation in annotations:
        missing = [x for x in ("iscrowd", "area") if x not in annotation]
        if missing:
            place = f"{_describe(annotation, file)}: no {', '.join(missing)}"
            findings.add(NO_CROWD_OR_AREA, place, severity=severity)


def _check_duplicates(
    annotations: Sequence[dict[str, Any]], file: Path, findings: Findings
) -> None:
    seen: set[int] = set()
    for annotation in annotations:
        # pycocotools ignores crowds, however often they are listed.
        if annotation.get("iscrowd"):
            continue
        key = get_object_key(annotation)
        if key in seen:
            place = f"{_describe(annotation, file)}: {annotation.get('bbox')}"
            findings.add(DUPLICATE_OBJECT, place)
        seen.add(key)


def get_object_key(annotation: dict[str, Any]) -> int:
    """Key shared by annotations with the same image, class, box, outline and keypoints."""
    # Hash of the text: lists cannot be hashed, and a million strings would take much memory.
    return hash(str([annotation.get(x) for x in _OBJECT_FIELDS]))


def _describe(annotation: dict[str, Any], file: Path) -> str:
    return f"{file}: annotation {_format_id(annotation)} (image {annotation.get('image_id')})"


def _format_id(annotation: dict[str, Any]) -> str:
    return json.dumps(annotation.get("id", annotation))[:_MAX_SHOWN]


def _check_annotation(
    annotation: dict[str, Any],
    images: dict,
    category_names: dict,
    file: Path,
    findings: Findings,
) -> bool:
    """Report the first fault; return whether the annotation is usable for training."""
    is_object = not annotation.get("iscrowd")
    fault = find_annotation_fault(annotation, images, category_names)
    if fault is None:
        return is_object
    rule, value = fault
    place = f"{file}: annotation {_format_id(annotation)}"
    image_id = annotation.get("image_id")
    if is_id(image_id) and image_id in images:
        image = images[image_id]
        size = f"{image['width']} x {image['height']}"
        place += f" of {image['file_name']} (image {image['id']}, {size})"
    # Only the advice of this rule lists the known categories.
    fields = {}
    if rule is UNKNOWN_CATEGORY:
        fields["known"] = shorten([f"{key} ({name})" for key, name in category_names.items()])
    findings.add(rule, f"{place}: {value}", **fields)
    # A box that extends beyond the image is still trained on; other faults make it unusable.
    return rule is BOX_CUT and is_object


def find_annotation_fault(
    annotation: dict[str, Any], images: dict, category_names: dict
) -> Optional[tuple[Rule, str]]:
    """The first fault of a COCO annotation, and the value that is wrong.

    Args:
        images: images by id, with "width" and "height" in pixels.
        category_names: names of categories by id.
    """
    # In this order, each check reads only what an earlier one has found to be valid.
    missing = [x for x in _REQUIRED_FIELDS if x not in annotation]
    if missing:
        return INCOMPLETE_ANNOTATION, f"no {', '.join(missing)}"
    image_id = annotation["image_id"]
    category_id = annotation["category_id"]
    if not is_whole(annotation["id"]):
        return INVALID_ANNOTATION_ID, f"id {annotation['id']!r}"
    if not is_id(image_id) or image_id not in images:
        return UNKNOWN_IMAGE, f"image {image_id!r}"
    if not is_whole(category_id) or category_id not in category_names:
        return UNKNOWN_CATEGORY, f"category {category_id!r}"
    fault = _find_evaluation_fault(annotation)
    if fault:
        return fault
    image = images[image_id]
    box_fault = find_box_fault(annotation["bbox"], (image["width"], image["height"]))
    if box_fault:
        return BOX_RULES[box_fault], str(annotation["bbox"])
    return _find_outline_fault(annotation)


def _find_evaluation_fault(annotation: dict[str, Any]) -> Optional[tuple[Rule, str]]:
    """First value of iscrowd, ignore or area that pycocotools would misread."""
    # pycocotools takes any true value for a crowd, even the text "0".
    crowd = annotation.get("iscrowd", 0)
    ignore = annotation.get("ignore", 0)
    if crowd not in (0, 1) or ignore != 0:
        return INVALID_CROWD, f"iscrowd {crowd!r}, ignore {ignore!r}"
    area = annotation.get("area", 0)
    if not is_area(area):
        return INVALID_AREA, f"area {area!r}"
    return None


def is_area(value: Any) -> bool:
    """Whether a value is an area in square pixels."""
    return is_number(value) and 0 <= value <= MAX_SIDE**2


def _find_outline_fault(annotation: dict[str, Any]) -> Optional[tuple[Rule, str]]:
    outline = annotation.get("segmentation")
    keypoints = annotation.get("keypoints")
    if isinstance(outline, list) and all(isinstance(x, list) for x in outline):
        # A polygon is a list of x and y; three points are six numbers.
        if outline and not any(len(x) % 2 == 0 and len(x) >= 6 for x in outline):
            return INVALID_OUTLINE, f"segmentation {str(outline)[:_MAX_SHOWN_OUTLINE]}"
    elif outline and not _is_rle(outline):
        return INVALID_SEGMENTATION, f"segmentation {str(outline)[:_MAX_SHOWN_OUTLINE]}"
    if keypoints and not (isinstance(keypoints, list) and all(is_number(x) for x in keypoints)):
        return INVALID_KEYPOINTS, f"keypoints {str(keypoints)[:_MAX_SHOWN_OUTLINE]}"
    return None


def _is_rle(outline: Any) -> bool:
    """Whether an outline is run-length encoded: a size, and counts as text or as numbers."""
    if not isinstance(outline, dict):
        return False
    size: Any = outline.get("size")
    if not _is_list_of_sizes(size) or len(size) != 2:
        return False
    counts = outline.get("counts")
    return isinstance(counts, str) or _is_list_of_sizes(counts)


def _is_list_of_sizes(value: Any) -> bool:
    """Whether a value is a list of whole numbers of 0 or more."""
    return isinstance(value, list) and all(is_whole(x) and x >= 0 for x in value)
