"""Checks of COCO annotations before anything is trained on them, and a copy with what can be corrected."""

import copy
import json
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Optional

from focal_det.data.findings import Findings, shorten

_MAX_SIDE = 1e6  # pixels; a larger coordinate is no place in an image
_FIX = "Correct the file, or write a corrected copy: --dataset NAME --fix OUT.json."
_PARTS = ("images", "annotations", "categories")
_CUT = "boxes that reach out of the image"
_NOT_NUMBERS = "boxes that are not four finite numbers"


def read_coco(file: Path, findings: Findings) -> Optional[dict[str, Any]]:
    """The content of a COCO json, or None with a finding that says where it breaks off or what it lacks."""
    try:
        content = json.loads(file.read_bytes())
    except UnicodeDecodeError as error:
        findings.add("error", "annotation files that are not json", "Save them as UTF-8.", f"{file}: {error}")
        return None
    except json.JSONDecodeError as error:
        where = f"{file}: {error.msg} at line {error.lineno}, column {error.colno} (character {error.pos} of {len(error.doc)})"
        findings.add("error", "annotation files that are not json", "The file is damaged or cut off: get it again.", where)
        return None
    missing = [x for x in _PARTS if not isinstance(content, dict) or not isinstance(content.get(x), list)]
    if missing:
        advice = "COCO annotations for detection have lists under images, annotations and categories."
        findings.add("error", "annotation files without a part", advice, f"{file}: no list under {', '.join(missing)}")
        return None
    for part in _PARTS:
        wrong = [x for x in content[part] if not isinstance(x, dict)]
        if wrong:
            place = f"{file}: {shorten([json.dumps(x)[:40] for x in wrong], 3)} under {part}"
            findings.add("error", "entries of annotation files that are not mappings", "Take them out.", place)
            content[part] = [x for x in content[part] if isinstance(x, dict)]
    return content


def check_coco(content: dict[str, Any], file: Path, findings: Findings, *, is_test: bool = True) -> list[dict[str, Any]]:
    """Check images, categories and annotations.

    Args:
        content: of `read_coco`.
        file: where it is from, for messages.
        is_test: whether it is evaluated on, for which there must be `iscrowd` and `area`.

    Returns:
        The images that have a name and a size.
    """
    images = _check_images(content["images"], file, findings)
    names = _check_categories(content["categories"], file, findings)
    _check_annotation_ids(content["annotations"], file, findings)
    _check_lacking(content["annotations"], file, findings, "error" if is_test else "warning")
    num_usable = sum(_check_annotation(x, images, names, file, findings) for x in content["annotations"])
    if not num_usable:
        findings.add("error", "data sets without a usable annotation", "There is nothing to train on.", str(file))
    with_object = {x["image_id"] for x in content["annotations"] if _is_id(x.get("image_id"))}
    note_empty_images(len(images.keys() - with_object), len(images), str(file), findings)
    return list(images.values())


def note_empty_images(num_empty: int, num_images: int, where: str, findings: Findings) -> None:
    """Say how many images have no objects, and what becomes of them."""
    if num_empty:
        advice = "Training leaves them out unless DATALOADER.FILTER_EMPTY_ANNOTATIONS is False; they teach what background is."
        place = f"{where}: {num_empty} of {num_images} ({100 * num_empty / num_images:.0f} %)"
        findings.add("note", "data sets with empty images", advice, place)


def _check_images(images: list[dict[str, Any]], file: Path, findings: Findings) -> dict[Any, dict[str, Any]]:
    """Images by id."""
    by_id: dict[Any, dict[str, Any]] = {}
    id_types = {type(x.get("id")) for x in images if _is_id(x.get("id"))}
    if len(id_types) > 1:
        place = f"{file}: {', '.join(sorted(x.__name__ for x in id_types))}"
        findings.add("error", "annotation files with image ids of different types", "Number the images anew.", place)
    for image in images:
        place = f"{file}: {json.dumps(image)[:100]}"
        missing = [key for key in ("id", "file_name", "width", "height") if key not in image]
        if missing:
            advice = "Detectron2 needs id, file_name, width and height of an image."
            findings.add("error", "images without a field", advice, f"{place} has no {', '.join(missing)}")
            continue
        if not _is_id(image["id"]):
            advice = "Ids are whole numbers, or text."
            findings.add("error", "images whose id is no id", advice, f"{place}: id is {image['id']!r}")
            continue
        has_size = all(_is_number(image[key]) and 0 < image[key] <= _MAX_SIDE for key in ("width", "height"))
        if not has_size or not isinstance(image["file_name"], str) or not image["file_name"]:
            advice = "file_name is text, width and height are pixels."
            findings.add("error", "images whose name or size is none", advice, place)
            continue
        if image["id"] in by_id:
            place = f"{file}: id {image['id']} of {by_id[image['id']]['file_name']} and {image['file_name']}"
            findings.add("error", "image ids given twice", "Boxes would land on the wrong image: number the images anew.", place)
            continue
        by_id[image["id"]] = image
    _check_file_names(by_id, file, findings)
    return by_id


def _check_file_names(images: dict[Any, dict[str, Any]], file: Path, findings: Findings) -> None:
    counts = Counter(x["file_name"] for x in images.values())
    for name in [x for x, count in counts.items() if count > 1]:
        ids = [k for k, x in images.items() if x["file_name"] == name]
        advice = "Join their annotations under one id; each would be background in the other."
        findings.add("warning", "image files listed more than once", advice, f"{file}: {name} as ids {shorten(ids)}")
    for image_id, image in images.items():
        path = PurePosixPath(image["file_name"].replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            place = f"{file}: image {image_id}, {image['file_name']}"
            findings.add("warning", "file names that leave the folder of the images", "Make them relative to it.", place)


def _check_categories(categories: list[dict[str, Any]], file: Path, findings: Findings) -> dict[Any, str]:
    """Category names by id."""
    names = {x["id"]: x["name"] for x in categories if _is_number(x.get("id"), int) and isinstance(x.get("name"), str)}
    if len(names) < len(categories) or not names:
        advice = "Each needs an id of its own, a whole number, and a name."
        wrong = [json.dumps(x)[:60] for x in categories if x.get("name") not in names.values()]
        place = f"{file}: {shorten(wrong or [json.dumps(x)[:60] for x in categories]) or 'there are none'}"
        findings.add("error", "annotation files with categories that have no id or name", advice, place)
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        advice = "They train as different classes: join them, or give them different names."
        findings.add("warning", "annotation files with categories of the same name", advice, f"{file}: {shorten(twice)}")
    ids = sorted(names)
    if ids != list(range(1, len(ids) + 1)):
        mapping = [f"{old} ({names[old]}) -> {new}" for new, old in enumerate(ids)]
        what = "data sets whose category ids have gaps or do not start at 1"
        findings.add("note", what, f"Class ids are {shorten(mapping)}.", str(file))
    return names


def _check_annotation_ids(annotations: list[dict[str, Any]], file: Path, findings: Findings) -> None:
    counts = Counter(x["id"] for x in annotations if _is_number(x.get("id"), int))
    for annotation_id, count in counts.items():
        if count > 1:
            place = f"{file}: annotation id {annotation_id}, {count} times"
            findings.add("error", "annotation ids given more than once", f"Evaluation counts wrong with them. {_FIX}", place)
    if 0 in counts:
        advice = f"pycocotools takes 0 for 'not found' and counts each detection of it as false. {_FIX}"
        findings.add("warning", "annotation files with the annotation id 0", advice, str(file))


def _check_lacking(annotations: list[dict[str, Any]], file: Path, findings: Findings, severity: str) -> None:
    for annotation in annotations:
        lacking = [x for x in ("iscrowd", "area") if x not in annotation]
        if lacking:
            place = f"{file}: annotation {_get_name(annotation)} (image {annotation.get('image_id')}): no {', '.join(lacking)}"
            advice = f"Evaluation stops without them, after the training. {_FIX}"
            findings.add(severity, "annotations without iscrowd or area", advice, place)


def _get_name(annotation: dict[str, Any]) -> str:
    return json.dumps(annotation.get("id", annotation))[:80]


def _check_annotation(annotation: dict[str, Any], images: dict, names: dict, file: Path, findings: Findings) -> bool:
    """Whether the annotation can be trained on."""
    fault = find_annotation_fault(annotation, images, names)
    if fault is None:
        return not annotation.get("iscrowd")
    what, value = fault
    where = f"{file}: annotation {_get_name(annotation)}"
    image = images.get(annotation["image_id"]) if _is_id(annotation.get("image_id")) else None
    if image is not None:
        where += f" of {image['file_name']} (image {image['id']}, {image['width']} x {image['height']})"
    severity, advice = _ADVICE.get(what, ("error", "Training or evaluation stops at them."))
    if what == "annotations of unknown categories":
        advice = f"Known are {shorten([f'{k} ({v})' for k, v in names.items()])}."
    findings.add(severity, what, f"{advice} {_FIX}", f"{where}: {value}")
    return what == _CUT


_ADVICE = {
    "annotations without a field": ("error", "They are needed to read it."),
    "annotations of unknown images": ("error", "They belong to no image of the file."),
    "boxes without area": ("warning", "Training leaves them out, and evaluation still counts them as missed."),
    "boxes outside of the image": ("warning", "Training leaves them out, and evaluation still counts them as missed."),
    _CUT: ("warning", "Training cuts them at its edge, evaluation does not."),
    "objects whose outline has no polygon of three points": ("warning", "Detectron2 leaves the whole object out."),
}


def find_annotation_fault(annotation: dict[str, Any], images: dict, names: dict) -> Optional[tuple[str, str]]:
    """The first fault of a COCO annotation, and its value: fields and their types, whether image and category are known, the box.

    Args:
        images: by id, with "width" and "height" in pixels.
        names: of categories, by id.
    """
    missing = [x for x in ("id", "image_id", "category_id", "bbox") if x not in annotation]
    if missing:
        return "annotations without a field", f"no {', '.join(missing)}"
    if not _is_number(annotation["id"], int):
        return "annotations whose id is not a whole number", repr(annotation["id"])
    if not _is_id(annotation["image_id"]) or annotation["image_id"] not in images:
        return "annotations of unknown images", f"image {annotation['image_id']!r}"
    if not _is_number(annotation["category_id"], int) or annotation["category_id"] not in names:
        return "annotations of unknown categories", f"category {annotation['category_id']!r}"
    crowd, ignore, area = (annotation.get(x, 0) for x in ("iscrowd", "ignore", "area"))
    if crowd not in (0, 1) or ignore != 0:
        place = f"iscrowd {crowd!r}, ignore {ignore!r}"
        return "annotations whose iscrowd is not 0 or 1, or with ignore", place
    if not _is_number(area) or not 0 <= area <= _MAX_SIDE**2:
        return "annotations whose area is no number of pixels", f"area {area!r}"
    fault = describe_box_fault(annotation["bbox"], images[annotation["image_id"]])
    if fault:
        return fault, str(annotation["bbox"])
    return _find_outline_fault(annotation)


def _find_outline_fault(annotation: dict[str, Any]) -> Optional[tuple[str, str]]:
    outline, keypoints = annotation.get("segmentation"), annotation.get("keypoints")
    if isinstance(outline, list) and all(isinstance(x, list) for x in outline):
        if outline and not any(len(x) % 2 == 0 and len(x) >= 6 for x in outline):
            return "objects whose outline has no polygon of three points", f"segmentation {str(outline)[:60]}"
    elif outline and not (isinstance(outline, dict) and isinstance(outline.get("counts"), str)):
        size = outline.get("size") if isinstance(outline, dict) else None
        is_rle = isinstance(size, list) and len(size) == 2 and isinstance(outline.get("counts"), list)
        if not is_rle or not all(_is_number(x, int) and x >= 0 for x in (*size, *outline["counts"])):
            return "annotations whose segmentation is none", f"segmentation {str(outline)[:60]}"
    if keypoints and not (isinstance(keypoints, list) and all(_is_number(x) for x in keypoints)):
        return "annotations whose keypoints are not numbers", f"keypoints {str(keypoints)[:60]}"
    return None


def describe_box_fault(box: Any, image: dict[str, Any]) -> Optional[str]:
    """What is wrong with an XYWH box of an image, if anything."""
    if not isinstance(box, Sequence) or len(box) != 4 or not all(_is_number(x) and abs(x) <= _MAX_SIDE for x in box):
        return _NOT_NUMBERS
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return "boxes without area"
    if x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0:
        return "boxes outside of the image"
    if x < 0 or y < 0 or x + width > image["width"] + 1 or y + height > image["height"] + 1:
        return _CUT
    return None


def _is_number(value: Any, kind: Any = (int, float)) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool) and abs(value) < math.inf


def _is_id(value: Any) -> bool:
    return isinstance(value, str) or _is_number(value, int)


def fix_coco(content: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A copy without what cannot be used, with missing fields filled in and boxes cut at the image; and what was changed.

    An image id that is given twice is not corrected: nobody knows which of the images an annotation belongs to.
    """
    fixed, changes = copy.deepcopy(content), Counter()
    images = _check_images(fixed["images"], Path(), Findings())
    names = _check_categories(fixed["categories"], Path(), Findings())
    kept = []
    for annotation in fixed["annotations"]:
        _fill_in(annotation, images, changes)
        what, _ = find_annotation_fault(annotation, images, names) or ("", "")
        if what == _CUT:
            annotation["bbox"] = _cut(annotation["bbox"], images[annotation["image_id"]])
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
        changes[f"{'cut' if what == _CUT else 'removed'}: {what}"] += bool(what)
        if what in ("", _CUT):
            kept.append(annotation)
    ids = Counter(x["id"] for x in kept)
    free = max((*ids, 0))
    for annotation in kept:
        if ids[annotation["id"]] > 1 or annotation["id"] <= 0:
            ids[annotation["id"]] -= 1
            free += 1
            annotation["id"] = free
            changes["numbered: annotation ids"] += 1
    fixed["annotations"] = kept
    return fixed, [f"{what} ({count})" for what, count in changes.items() if count]


def _fill_in(annotation: dict[str, Any], images: dict, changes: Counter) -> None:
    """Give an annotation what can be known: an id to be numbered, no crowd, the area of its box."""
    if not _is_number(annotation.get("id"), int):
        annotation["id"] = 0
    has_image = _is_id(annotation.get("image_id")) and annotation["image_id"] in images
    if has_image and describe_box_fault(annotation.get("bbox"), images[annotation["image_id"]]) in (None, _CUT):
        area = annotation.get("area")
        if not _is_number(area) or not 0 <= area <= _MAX_SIDE**2:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
            changes["filled in: area"] += 1
    if "iscrowd" not in annotation:
        annotation["iscrowd"] = 0
        changes["filled in: iscrowd"] += 1


def _cut(box: list[float], image: dict[str, Any]) -> list[float]:
    x0, y0 = max(box[0], 0), max(box[1], 0)
    return [x0, y0, min(box[0] + box[2], image["width"]) - x0, min(box[1] + box[3], image["height"]) - y0]
