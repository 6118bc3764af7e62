"""Checks of COCO annotations, one by one and all together: fields, ids, boxes, and what is wrong with all in the same way."""

import json
import math
import numbers
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

from focal_det.messages import shorten

from .findings import Findings

MAX_SIDE = 1e6  # pixels; a larger coordinate is no place in an image
CUT = "boxes that reach out of the image"
TWICE = "objects given more than once"
INVALID_NAME = (
    "images with an invalid file name",
    "No file can have such a name: correct it, or take the image out.",
)
_NOT_NUMBERS = "boxes that are not four finite numbers"
_SLACK = 1  # pixel that a box may reach out, as rounding has it
_OUTSIDE = "boxes outside of the image"
_MIN_BOXES = 10  # from which their form can be told
_MANY_OUT, _MOST_OUT = (
    0.25,
    0.5,
)  # of the boxes reach out of their image, for a warning and an error about their form
_MANY_OUTSIDE = 0.2  # of the boxes have nothing in their image
_FEW_SHIFTED, _FEW_SHIFTED_SHARE = (
    5,
    0.02,
)  # annotations of unknown classes, below which they are mistakes one by one
# Other forms of a box than COCO's, and their corners.
_FORMS = {
    "x0, y0, x1, y1": lambda x0, y0, x1, y1: (x0, y0, x1, y1),
    "centre x, centre y, width, height": lambda x, y, w, h: (
        x - w / 2,
        y - h / 2,
        x + w / 2,
        y + h / 2,
    ),
    "y, x, height, width": lambda y, x, h, w: (x, y, x + w, y + h),
}
_FIX = "Correct the file, or write a corrected copy: --dataset NAME --fix OUT.json."
_ADVICE = {
    "annotations without a field": ("error", "They are needed to read it."),
    "annotations of unknown images": ("error", "They belong to no image of the file."),
    "boxes without area": (
        "warning",
        "Training leaves them out, and evaluation still counts them as missed.",
    ),
    _OUTSIDE: ("warning", "Training leaves them out, and evaluation still counts them as missed."),
    CUT: ("warning", "Training cuts them at its edge, evaluation does not."),
    "objects whose outline has no polygon of three points": (
        "warning",
        "Detectron2 leaves the whole object out.",
    ),
}


def check_annotations(
    annotations: Sequence[dict[str, Any]],
    images: dict,
    names: dict,
    file: Path,
    findings: Findings,
    *,
    is_test: bool,
) -> int:
    """Check the annotations of a COCO json.

    Args:
        images: by id, with "file_name", and "width" and "height" in pixels.
        names: of categories, by id.
        file: where they are from, for messages.
        is_test: whether they are evaluated on, for which there must be `iscrowd` and `area`.

    Returns:
        How many of them can be trained on.
    """
    _check_ids(annotations, file, findings)
    _check_lacking(annotations, file, findings, is_test)
    _check_twice(annotations, file, findings)
    check_form(annotations, images, names, file, findings)
    return sum(_check_annotation(x, images, names, file, findings) for x in annotations)


def _check_ids(annotations: Sequence[dict[str, Any]], file: Path, findings: Findings) -> None:
    counts = Counter(x["id"] for x in annotations if is_whole(x.get("id")))
    for annotation_id, count in counts.items():
        if count > 1:
            place = f"{file}: annotation id {annotation_id}, {count} times"
            findings.add(
                "error",
                "annotation ids given more than once",
                f"Evaluation counts wrong with them. {_FIX}",
                place,
            )
    if 0 in counts:
        advice = (
            f"pycocotools takes 0 for 'not found' and counts each detection of it as false. {_FIX}"
        )
        findings.add("warning", "annotation files with the annotation id 0", advice, str(file))


def _check_lacking(
    annotations: Sequence[dict[str, Any]], file: Path, findings: Findings, is_test: bool
) -> None:
    severity, when = (
        ("error", "stops without them, after the training")
        if is_test
        else ("warning", "of this set would stop")
    )
    for annotation in annotations:
        lacking = [x for x in ("iscrowd", "area") if x not in annotation]
        if lacking:
            place = f"{file}: annotation {_get_name(annotation)} (image {annotation.get('image_id')}): no {', '.join(lacking)}"
            findings.add(
                severity, "annotations without iscrowd or area", f"Evaluation {when}. {_FIX}", place
            )


def _check_twice(annotations: Sequence[dict[str, Any]], file: Path, findings: Findings) -> None:
    seen: set[int] = set()
    for annotation in (x for x in annotations if not x.get("iscrowd")):
        key = get_object_key(annotation)
        if key in seen:
            advice = f"They are trained on and counted more than once. {_FIX}"
            place = f"{file}: annotation {_get_name(annotation)} (image {annotation.get('image_id')}): {annotation.get('bbox')}"
            findings.add("warning", TWICE, advice, place)
        seen.add(key)


def get_object_key(annotation: dict[str, Any]) -> int:
    """The same for the same class, box and outline in the same image."""
    return hash(
        str(
            [
                annotation.get(x)
                for x in ("image_id", "category_id", "bbox", "segmentation", "keypoints")
            ]
        )
    )


def check_form(
    annotations: Sequence[dict[str, Any]], images: dict, names: dict, file: Path, findings: Findings
) -> None:
    """Find what is wrong in the same way with all: class ids that are shifted, boxes in another form."""
    _check_shift(
        [x["category_id"] for x in annotations if is_whole(x.get("category_id"))],
        names,
        file,
        findings,
    )
    known = [x for x in annotations if is_id(x.get("image_id")) and x["image_id"] in images]
    pairs = [(x["bbox"], images[x["image_id"]]) for x in known if "bbox" in x]
    faults = [describe_box_fault(*x) for x in pairs]
    pairs = [pair for pair, fault in zip(pairs, faults) if fault != _NOT_NUMBERS]
    if len(pairs) < _MIN_BOXES:
        return
    if all(max(box) <= 1 for box, _ in pairs) and not all(
        map(is_whole, (x for box, _ in pairs for x in box))
    ):
        advice = "COCO boxes are in pixels: multiply by width and height of the image."
        place = f"{file}: all of {len(pairs)} boxes are within 0 to 1, such as {pairs[0][0]}"
        findings.add("error", "boxes that are fractions of the image", advice, place)
    num_outside, num_cut = faults.count(_OUTSIDE), faults.count(CUT)
    if num_outside + num_cut < _MANY_OUT * len(pairs):
        return
    for form, to_corners in _FORMS.items():
        if all(_is_inside(to_corners(*box), image) for box, image in pairs):
            out = f"{num_outside + num_cut} of {len(pairs)} reach out of their image"
            place = f"{file}: {out}, such as {pairs[0][0]}; as {form}, none"
            advice = "COCO boxes are x, y, width, height, with x and y of the upper left corner: convert them."
            severity = "error" if num_outside + num_cut >= _MOST_OUT * len(pairs) else "warning"
            findings.add(severity, f"boxes that look like {form}", advice, place)
            return
    if num_outside >= _MANY_OUTSIDE * len(pairs):
        advice = "Are they for images of another size, or of other files?"
        place = f"{file}: {num_outside} of {len(pairs)} boxes are outside of their image"
        findings.add("error", "boxes that do not go with the images", advice, place)


def _check_shift(class_ids: Sequence[int], names: dict, file: Path, findings: Findings) -> None:
    """Find class ids that all are one too small or too large."""
    used, num_unknown = set(class_ids), sum(x not in names for x in class_ids)
    if num_unknown < max(_FEW_SHIFTED, _FEW_SHIFTED_SHARE * len(class_ids)) or len(used) < 2:
        return
    for shift, words in ((1, "1 more"), (-1, "1 less")):
        if {x + shift for x in used} <= names.keys():
            place = f"{file}: annotations have {shorten(sorted(used))}, categories {shorten(sorted(names))}; all fit with {words}"
            advice = "Objects have the names of other classes: correct the ids of the categories or of the annotations."
            findings.add("error", "category ids that are shifted", advice, place)


def _is_inside(corners: Sequence[float], image: dict[str, Any]) -> bool:
    x0, y0, x1, y1 = corners
    return (
        -_SLACK <= x0 < x1 <= image["width"] + _SLACK
        and -_SLACK <= y0 < y1 <= image["height"] + _SLACK
    )


def _get_name(annotation: dict[str, Any]) -> str:
    return json.dumps(annotation.get("id", annotation))[:80]


def _check_annotation(
    annotation: dict[str, Any], images: dict, names: dict, file: Path, findings: Findings
) -> bool:
    """Whether the annotation can be trained on."""
    fault = find_annotation_fault(annotation, images, names)
    if fault is None:
        return not annotation.get("iscrowd")
    what, value = fault
    where = f"{file}: annotation {_get_name(annotation)}"
    image = images.get(annotation["image_id"]) if is_id(annotation.get("image_id")) else None
    if image is not None:
        where += (
            f" of {image['file_name']} (image {image['id']}, {image['width']} x {image['height']})"
        )
    severity, advice = _ADVICE.get(what, ("error", "Training or evaluation stops at them."))
    if what == "annotations of unknown categories":
        advice = f"Known are {shorten([f'{k} ({v})' for k, v in names.items()])}."
    findings.add(severity, what, f"{advice} {_FIX}", f"{where}: {value}")
    return what == CUT


def find_annotation_fault(
    annotation: dict[str, Any], images: dict, names: dict
) -> Optional[tuple[str, str]]:
    """The first fault of a COCO annotation, and its value: fields and their types, whether image and category are known, the box.

    Args:
        images: by id, with "width" and "height" in pixels.
        names: of categories, by id.
    """
    missing = [x for x in ("id", "image_id", "category_id", "bbox") if x not in annotation]
    if missing:
        return "annotations without a field", f"no {', '.join(missing)}"
    if not is_whole(annotation["id"]):
        return "annotations whose id is not a whole number", repr(annotation["id"])
    if not is_id(annotation["image_id"]) or annotation["image_id"] not in images:
        return "annotations of unknown images", f"image {annotation['image_id']!r}"
    if not is_whole(annotation["category_id"]) or annotation["category_id"] not in names:
        return "annotations of unknown categories", f"category {annotation['category_id']!r}"
    crowd, ignore, area = (annotation.get(x, 0) for x in ("iscrowd", "ignore", "area"))
    if crowd not in (0, 1) or ignore != 0:
        place = f"iscrowd {crowd!r}, ignore {ignore!r}"
        return "annotations whose iscrowd is not 0 or 1, or with ignore", place
    if not is_number(area) or not 0 <= area <= MAX_SIDE**2:
        return "annotations whose area is no number of pixels", f"area {area!r}"
    fault = describe_box_fault(annotation["bbox"], images[annotation["image_id"]])
    if fault:
        return fault, str(annotation["bbox"])
    return _find_outline_fault(annotation)


def _find_outline_fault(annotation: dict[str, Any]) -> Optional[tuple[str, str]]:
    outline, keypoints = annotation.get("segmentation"), annotation.get("keypoints")
    if isinstance(outline, list) and all(isinstance(x, list) for x in outline):
        if outline and not any(len(x) % 2 == 0 and len(x) >= 6 for x in outline):
            return (
                "objects whose outline has no polygon of three points",
                f"segmentation {str(outline)[:60]}",
            )
    elif outline and not (isinstance(outline, dict) and isinstance(outline.get("counts"), str)):
        size = outline.get("size") if isinstance(outline, dict) else None
        is_rle = (
            isinstance(size, list) and len(size) == 2 and isinstance(outline.get("counts"), list)
        )
        if not is_rle or not all(is_whole(x) and x >= 0 for x in (*size, *outline["counts"])):
            return "annotations whose segmentation is none", f"segmentation {str(outline)[:60]}"
    if keypoints and not (isinstance(keypoints, list) and all(is_number(x) for x in keypoints)):
        return "annotations whose keypoints are not numbers", f"keypoints {str(keypoints)[:60]}"
    return None


def describe_box_fault(box: Any, image: dict[str, Any]) -> Optional[str]:
    """What is wrong with an XYWH box of an image, if anything."""
    if (
        not isinstance(box, Sequence)
        or len(box) != 4
        or not all(is_number(x) and abs(x) <= MAX_SIDE for x in box)
    ):
        return _NOT_NUMBERS
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return "boxes without area"
    if x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0:
        return _OUTSIDE
    if (
        min(x, y) < -_SLACK
        or x + width > image["width"] + _SLACK
        or y + height > image["height"] + _SLACK
    ):
        return CUT
    return None


def is_number(value: Any) -> bool:
    kind = type(value)
    is_real = kind in (int, float) or (
        kind is not bool and isinstance(value, numbers.Real)
    )  # the first is far faster
    return is_real and -math.inf < value < math.inf


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number, of whatever type: 2.0 is as good an id as 2."""
    return type(value) is int or (is_number(value) and abs(value) < 2**53 and value == int(value))


def is_id(value: Any) -> bool:
    return isinstance(value, str) or is_whole(value)
