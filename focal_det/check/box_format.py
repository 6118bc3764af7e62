"""Checks for faults that all annotations of a file share: shifted ids, another box format."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from focal_det.data.boxes import BoxFault, find_box_fault, is_within
from focal_det.messages import shorten

from .data_rules import (
    BOXES_AS_FRACTIONS,
    BOXES_OF_OTHER_IMAGES,
    OTHER_BOX_FORMAT,
    SHIFTED_CATEGORY_IDS,
)
from .findings import Findings
from .values import is_id, is_whole

_MIN_BOXES = 10  # fewer do not show their format
# Shares of boxes that extend beyond their image. With at least the first, another format is
# suspected; with at least the second, it is certain.
_MANY_OUT = 0.25
_MOST_OUT = 0.5
# If at least this share of boxes lies outside their image, they belong to other images.
_MANY_OUTSIDE = 0.2
# A shift is reported only if at least this many annotations, and at least this share of them, have
# unknown categories.
_FEW_SHIFTED = 5
_FEW_SHIFTED_SHARE = 0.02
_ALL_FIT_WITH = {1: "1 added", -1: "1 subtracted"}
# Box formats other than COCO's, each with a function from its values to the corners.
_FORMS: dict[str, Callable[..., tuple[float, float, float, float]]] = {
    "x0, y0, x1, y1": lambda x0, y0, x1, y1: (x0, y0, x1, y1),
    "centre x, centre y, width, height": lambda x, y, w, h: (
        x - w / 2,
        y - h / 2,
        x + w / 2,
        y + h / 2,
    ),
    "y, x, height, width": lambda y, x, h, w: (x, y, x + w, y + h),
}

Size = tuple[float, float]


def check_form(
    annotations: Sequence[dict[str, Any]], images: dict, names: dict, file: Path, findings: Findings
) -> None:
    """Find systematic faults.

    Args:
        images: by id, with "width" and "height" in pixels.
        names: of categories, by id.
        file: where the annotations are from, for messages.
    """
    class_ids = [x["category_id"] for x in annotations if is_whole(x.get("category_id"))]
    _check_shift(class_ids, names, file, findings)
    boxes: list[tuple[Sequence[float], Size]] = []
    faults = []
    for annotation in annotations:
        image_id = annotation.get("image_id")
        if not is_id(image_id) or image_id not in images:
            continue
        size = (images[image_id]["width"], images[image_id]["height"])
        fault = find_box_fault(annotation.get("bbox"), size)
        if fault is not BoxFault.NOT_FINITE:
            boxes.append((annotation["bbox"], size))
            faults.append(fault)
    if len(boxes) >= _MIN_BOXES:
        _check_fractions(boxes, file, findings)
        _check_format(boxes, faults, file, findings)


def _check_fractions(
    boxes: Sequence[tuple[Sequence[float], Size]], file: Path, findings: Findings
) -> None:
    # Boxes of one pixel at the origin are small, too, but consist of whole numbers.
    is_small = all(max(box) <= 1 for box, _ in boxes)
    if is_small and not all(is_whole(x) for box, _ in boxes for x in box):
        first, _ = boxes[0]
        place = f"{file}: all of {len(boxes)} boxes are within 0 to 1, such as {first}"
        findings.add(BOXES_AS_FRACTIONS, place)


def _check_format(
    boxes: Sequence[tuple[Sequence[float], Size]],
    faults: Sequence[Any],
    file: Path,
    findings: Findings,
) -> None:
    """If many boxes extend beyond their image, find a format in which none does."""
    num_outside = faults.count(BoxFault.OUTSIDE)
    num_out = num_outside + faults.count(BoxFault.CUT)
    if num_out < _MANY_OUT * len(boxes):
        return
    first, _ = boxes[0]
    for form, to_corners in _FORMS.items():
        if all(is_within(to_corners(*box), size) for box, size in boxes):
            out = f"{num_out} of {len(boxes)} extend beyond their image, such as {first}"
            severity = "error" if num_out >= _MOST_OUT * len(boxes) else "warning"
            place = f"{file}: {out}; read as {form}, none do"
            findings.add(OTHER_BOX_FORMAT, place, severity=severity, form=form)
            return
    # No known format explains them.
    if num_outside >= _MANY_OUTSIDE * len(boxes):
        place = f"{file}: {num_outside} of {len(boxes)} boxes are outside their image"
        findings.add(BOXES_OF_OTHER_IMAGES, place)


def _check_shift(class_ids: Sequence[int], names: dict, file: Path, findings: Findings) -> None:
    """Find category ids that are all one too small or too large."""
    used = set(class_ids)
    num_unknown = sum(x not in names for x in class_ids)
    few = max(_FEW_SHIFTED, _FEW_SHIFTED_SHARE * len(class_ids))
    # A single class fits any shift.
    if num_unknown < few or len(used) < 2:
        return
    for shift, words in _ALL_FIT_WITH.items():
        if {x + shift for x in used} <= names.keys():
            found = f"annotations have {shorten(sorted(used))}, categories {shorten(sorted(names))}"
            findings.add(SHIFTED_CATEGORY_IDS, f"{file}: {found}; all fit with {words}")
