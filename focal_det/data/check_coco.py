"""Checks of COCO annotations before anything is trained on them, and a copy with what can be corrected."""

import copy
import json
import math
from collections import Counter
from pathlib import Path, PurePosixPath
from typing import Any, Optional

from focal_det.data.findings import Findings, shorten

_MAX_SIDE = 1e6  # pixels; a larger coordinate is no place in an image
_FIX = "Correct the file, or write a corrected copy with --fix."


def read_coco(file: Path, findings: Findings) -> Optional[dict[str, Any]]:
    """The content of a COCO json, or None with a finding that says where it breaks off or what it lacks."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        size = file.stat().st_size
        where = f"{file}: {error.msg} at line {error.lineno}, column {error.colno} (character {error.pos} of {size})"
        findings.add("error", "annotation files that are not json", "The file is damaged or cut off: get it again.", where)
        return None
    missing = [
        k for k in ("images", "annotations", "categories") if not isinstance(content, dict) or not isinstance(content.get(k), list)
    ]
    if missing:
        advice = "COCO annotations for detection have lists under images, annotations and categories."
        findings.add("error", "annotation files without a part", advice, f"{file}: no list under {', '.join(missing)}")
        return None
    return content


def check_coco(content: dict[str, Any], file: Path, findings: Findings) -> None:
    """Check images, categories and annotations.

    Args:
        content: of `read_coco`.
        file: where it is from, for messages.
    """
    images = _check_images(content["images"], file, findings)
    names = _check_categories(content["categories"], file, findings)
    _check_ids(content["annotations"], file, findings)
    num_usable = sum(_check_annotation(x, images, names, file, findings) for x in content["annotations"])
    if not num_usable:
        findings.add("error", "data sets without a usable annotation", "There is nothing to train on.", str(file))
    empty = len(images) - len({x.get("image_id") for x in content["annotations"]} & set(images))
    if empty:
        advice = "Training leaves them out unless DATALOADER.FILTER_EMPTY_ANNOTATIONS is False; they teach what background is."
        findings.add("note", "data sets with images without objects", advice, f"{file}: {empty} of {len(images)}")


def _check_images(images: list[dict[str, Any]], file: Path, findings: Findings) -> dict[Any, dict[str, Any]]:
    """Images by id."""
    by_id: dict[Any, dict[str, Any]] = {}
    for image in images:
        missing = [key for key in ("id", "file_name", "width", "height") if key not in image]
        if missing:
            place = f"{file}: {json.dumps(image)[:100]} has no {', '.join(missing)}"
            findings.add("error", "images without a field", "Detectron2 needs id, file_name, width and height of an image.", place)
            continue
        if image["id"] in by_id:
            place = f"{file}: id {image['id']} of {by_id[image['id']]['file_name']} and {image['file_name']}"
            findings.add("error", "image ids given twice", "Boxes would land on the wrong image: number the images anew.", place)
            continue
        by_id[image["id"]] = image
        path = PurePosixPath(str(image["file_name"]).replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            place = f"{file}: image {image['id']}, {image['file_name']}"
            findings.add("warning", "file names that leave the folder of the images", "Make them relative to it.", place)
    return by_id


def _check_categories(categories: list[dict[str, Any]], file: Path, findings: Findings) -> dict[Any, str]:
    """Category names by id."""
    names = {x["id"]: str(x.get("name", x["id"])) for x in categories if "id" in x}
    if len(names) < len(categories):
        findings.add("error", "categories without an id of their own", "Give each category an id.", str(file))
    ids = sorted(names)
    if ids != list(range(1, len(ids) + 1)):
        mapping = [f"{old} ({names[old]}) -> {new}" for new, old in enumerate(ids)]
        findings.add(
            "note", "data sets whose category ids have gaps or do not start at 1", f"Class ids are {shorten(mapping)}.", str(file)
        )
    return names


def _check_ids(annotations: list[dict[str, Any]], file: Path, findings: Findings) -> None:
    counts = Counter(x["id"] for x in annotations if "id" in x)
    for annotation_id, count in counts.items():
        if count > 1:
            place = f"{file}: annotation id {annotation_id}, {count} times"
            findings.add("error", "annotation ids given more than once", f"Evaluation counts wrong with them. {_FIX}", place)


def _check_annotation(annotation: dict[str, Any], images: dict, names: dict, file: Path, findings: Findings) -> bool:
    """Whether the annotation can be trained on."""
    where = f"{file}: annotation {annotation.get('id', json.dumps(annotation)[:80])}"
    missing = [key for key in ("id", "image_id", "category_id", "bbox") if key not in annotation]
    if missing:
        findings.add(
            "error", "annotations without a field", f"They need it to be read. {_FIX}", f"{where} has no {', '.join(missing)}"
        )
        return False
    lacking = [key for key in ("iscrowd", "area") if key not in annotation]
    if lacking:
        advice = f"Evaluation stops without them, after the training. {_FIX}"
        findings.add("error", f"annotations without {' and '.join(lacking)}", advice, where)
    image = images.get(annotation["image_id"])
    if image is None:
        advice = f"They belong to no image of the file. {_FIX}"
        findings.add("error", "annotations of unknown images", advice, f"{where} of image {annotation['image_id']!r}")
        return False
    where = f"{where} of {image['file_name']}"
    if annotation["category_id"] not in names:
        advice = f"Known are {shorten([f'{k} ({v})' for k, v in names.items()])}. {_FIX}"
        findings.add("error", "annotations of unknown categories", advice, f"{where}: category {annotation['category_id']!r}")
        return False
    fault = describe_box_fault(annotation["bbox"], image)
    if fault is None:
        return not annotation.get("iscrowd")
    severity = "error" if fault == "boxes that are not four finite numbers" else "warning"
    advice = {"boxes that reach out of the image": f"Training cuts them at its edge, evaluation does not. {_FIX}"}.get(
        fault, f"Training leaves them out, and evaluation still counts them as missed. {_FIX}"
    )
    findings.add(severity, fault, advice, f"{where}: {annotation['bbox']} in {image['width']} x {image['height']}")
    return fault == "boxes that reach out of the image"


def describe_box_fault(box: Any, image: dict[str, Any]) -> Optional[str]:
    """What is wrong with an XYWH box of an image, if anything."""
    is_numbers = isinstance(box, (list, tuple)) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box)
    if not is_numbers or not all(math.isfinite(v) and abs(v) <= _MAX_SIDE for v in box):
        return "boxes that are not four finite numbers"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return "boxes without area"
    if x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0:
        return "boxes outside of the image"
    if x < 0 or y < 0 or x + width > image["width"] + 1 or y + height > image["height"] + 1:
        return "boxes that reach out of the image"
    return None


def fix_coco(content: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A copy without what cannot be used, with missing fields filled in and boxes cut at the image; and what was changed.

    An image id that is given twice is not corrected: nobody knows which of the images an annotation belongs to.
    """
    fixed, changes = copy.deepcopy(content), Counter()
    images = {x["id"]: x for x in fixed["images"] if {"id", "width", "height"} <= set(x)}
    categories, kept, used = {x.get("id") for x in fixed["categories"]}, [], set()
    for annotation in fixed["annotations"]:
        image = images.get(annotation.get("image_id"))
        fault = describe_box_fault(annotation.get("bbox"), image) if image else "annotations of unknown images"
        if annotation.get("category_id") not in categories or (fault and fault != "boxes that reach out of the image"):
            changes[f"removed: {fault or 'annotations of unknown categories'}"] += 1
            continue
        if fault:
            annotation["bbox"] = _cut(annotation["bbox"], image)
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
            changes["cut: boxes that reach out of the image"] += 1
        for key, value in (("iscrowd", 0), ("area", annotation["bbox"][2] * annotation["bbox"][3])):
            if key not in annotation:
                annotation[key] = value
                changes[f"filled in: {key}"] += 1
        if annotation.get("id") in used or "id" not in annotation:
            annotation["id"] = None
        used.add(annotation["id"])
        kept.append(annotation)
    free = max((x["id"] for x in kept if isinstance(x["id"], int)), default=0)
    for annotation in kept:
        if annotation["id"] is None:
            free += 1
            annotation["id"] = free
            changes["numbered: annotation ids"] += 1
    fixed["annotations"] = kept
    return fixed, [f"{what} ({count})" for what, count in changes.items()]


def _cut(box: list[float], image: dict[str, Any]) -> list[float]:
    x0, y0 = max(box[0], 0), max(box[1], 0)
    return [x0, y0, min(box[0] + box[2], image["width"]) - x0, min(box[1] + box[3], image["height"]) - y0]
