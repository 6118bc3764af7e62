"""Checks of a COCO json before anything is trained on it: the file, its images and its categories."""

import csv
import json
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath
from typing import Any, Optional

from focal_det.data.voc import is_file_name
from focal_det.messages import shorten

from .annotations import (
    INVALID_NAME,
    MAX_SIDE,
    check_annotations,
    is_id,
    is_number,
    is_whole,
)
from .findings import Findings

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip"}
_NUM_LOOKED_AT = 5  # lines of a file whose format is guessed
_PARTS = ("images", "categories", "annotations")


def read_coco(file: Path, findings: Findings, *, is_train: bool = True) -> Optional[dict[str, Any]]:
    """The content of a COCO json, or None with a finding that says where it breaks off or what it lacks.

    Args:
        is_train: whether there must be annotations; those of a test set may be kept from us.
    """
    content = _parse(file, findings)
    if content is None:
        return None
    needed = _PARTS if is_train else _PARTS[:2]
    missing = [
        x for x in needed if not isinstance(content, dict) or not isinstance(content.get(x), list)
    ]
    if missing:
        advice = f"COCO annotations for {'training' if is_train else 'tests'} have lists under {', '.join(needed)}."
        findings.add(
            "error",
            "annotation files without a part",
            advice,
            f"{file}: no list under {', '.join(missing)}",
        )
        return None
    if not isinstance(content.get("annotations"), list):
        content["annotations"] = []
    for part in _PARTS:
        wrong = [x for x in content[part] if not isinstance(x, dict)]
        if wrong:
            place = f"{file}: {shorten([json.dumps(x)[:40] for x in wrong], 3)} under {part}"
            findings.add(
                "error",
                "entries of annotation files that are not mappings",
                "Take them out.",
                place,
            )
            content[part] = [x for x in content[part] if isinstance(x, dict)]
    return content


def _parse(file: Path, findings: Findings) -> Optional[Any]:
    """The content of a json file, or None with a finding that says what the file is instead."""
    what = "annotation files that are not json"
    with file.open("rb") as opened:
        start = opened.read(max(map(len, _COMPRESSED)))
    for signature, kind in _COMPRESSED.items():
        if start.startswith(signature):
            findings.add("error", what, "Unpack it.", f"{file} is {kind}-compressed")
            return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        findings.add(
            "error", what, "Save them as UTF-8.", f"{file}: {error.reason} (byte {error.start})"
        )
    except json.JSONDecodeError as error:
        place, advice = _explain(error)
        findings.add("error", what, advice, f"{file}{place}")
    except RecursionError:
        advice = "COCO annotations need less than ten levels: correct what writes the file."
        findings.add("error", "annotation files that are nested too deep", advice, str(file))
    return None


def _explain(error: json.JSONDecodeError) -> tuple[str, str]:
    """What follows the name of the file that does not parse as JSON, and advice."""
    kind = _guess_format(error)
    if kind:
        return f" is not JSON, it looks like {kind}", "Convert it to COCO json."
    length = len(error.doc)
    where = f"line {error.lineno}, column {error.colno} (character {error.pos} of {length})"
    place = f": {error.msg} at {where}"
    if error.doc.startswith("\ufeff"):
        return place, "Save it as UTF-8 without a byte order mark."
    if error.doc.strip() and not error.doc.lstrip().startswith(("{", "[")):
        return place, "Give a file of COCO annotations in JSON."
    return place, "The file is damaged or cut off: get it again."


def _guess_format(error: json.JSONDecodeError) -> str:
    """The format of a text that does not parse as JSON; empty if it may be damaged JSON or unknown."""
    lines = error.doc.split("\n", _NUM_LOOKED_AT)[:_NUM_LOOKED_AT]
    lines = [x for x in map(str.strip, lines) if x]
    if not lines:
        return ""
    if lines[0].startswith("<"):
        return "XML or HTML"
    if lines[0].startswith(("{", "[", "\ufeff")):
        is_json_lines = error.msg == "Extra data" and lines[0].startswith("{")
        return "JSON Lines" if is_json_lines else ""
    for delimiter in ",;\t":
        num_columns = {len(row) for row in csv.reader(lines, delimiter=delimiter)}
        if len(num_columns) == 1 and num_columns != {1}:
            return "CSV"
    return ""


def check_coco(
    content: dict[str, Any],
    file: Path,
    findings: Findings,
    *,
    is_train: bool = True,
    is_test: bool = True,
    filter_empty: bool = True,
) -> list[dict[str, Any]]:
    """Check images, categories and annotations.

    Args:
        content: of `read_coco`.
        file: where it is from, for messages.
        is_train: whether it is trained on, for which there must be objects.
        is_test: whether it is evaluated on, for which there must be `iscrowd` and `area`.
        filter_empty: whether training leaves out images without objects.

    Returns:
        The images that have a name and a size.
    """
    annotations, images = (
        content["annotations"],
        check_coco_images(content["images"], file, findings),
    )
    names = check_coco_categories(content["categories"], file, findings)
    checked = drop_of_broken_images(content, images)
    num_usable = check_annotations(checked, images, names, file, findings, is_test=is_test)
    counts = f"{len(content['images'])} images, {len(annotations)} annotations, {num_usable} of them usable and no crowd"
    if checked or not annotations:  # else all are of images that have a finding of their own
        check_not_empty(num_usable, f"{file}: {counts}", findings, is_train)
    if annotations:
        with_object = {x["image_id"] for x in annotations if is_id(x.get("image_id"))}
        num_empty = len(images.keys() - with_object)
        note_empty_images(
            num_empty,
            len(images),
            str(file),
            findings,
            is_train=is_train,
            filter_empty=filter_empty,
        )
    return list(images.values())


def check_not_empty(num_usable: int, where: str, findings: Findings, is_train: bool) -> None:
    """Say that there is nothing to train on, or nothing to compare detections with."""
    if num_usable == 0 and is_train:
        findings.add(
            "error", "data sets without a usable annotation", "There is nothing to train on.", where
        )
    elif num_usable == 0:
        advice = "Detections are written, but there are no figures."
        findings.add("warning", "test sets without a usable annotation", advice, where)


def note_empty_images(
    num_empty: int,
    num_images: int,
    where: str,
    findings: Findings,
    *,
    is_train: bool,
    filter_empty: bool,
) -> None:
    """Say how many images have no objects, and what becomes of them."""
    if not num_empty:
        return
    advice = "Every detection there counts as false: make sure that they are really empty."
    if is_train and filter_empty:
        advice = "Training leaves them out; with DATALOADER.FILTER_EMPTY_ANNOTATIONS False they teach what background is."
    elif is_train:
        advice = "They teach what background is (DATALOADER.FILTER_EMPTY_ANNOTATIONS False): make sure that they are really empty."
    place = f"{where}: {num_empty} of {num_images} ({100 * num_empty / num_images:.0f} %)"
    findings.add("note", "data sets with empty images", advice, place)


def drop_of_broken_images(
    content: dict[str, Any], images: dict[Any, dict[str, Any]]
) -> list[dict[str, Any]]:
    """The annotations, but for those of images that have a finding of their own."""
    broken = {x["id"] for x in content["images"] if is_id(x.get("id"))} - images.keys()
    return [
        x
        for x in content["annotations"]
        if not (is_id(x.get("image_id")) and x["image_id"] in broken)
    ]


def check_coco_images(
    images: list[dict[str, Any]], file: Path, findings: Findings
) -> dict[Any, dict[str, Any]]:
    """Images by id."""
    by_id: dict[Any, dict[str, Any]] = {}
    id_types = {"str" if isinstance(x["id"], str) else "int" for x in images if is_id(x.get("id"))}
    if len(id_types) > 1:
        place = f"{file}: {', '.join(sorted(id_types))}"
        findings.add(
            "error",
            "annotation files with image ids of different types",
            "Number the images anew.",
            place,
        )
    for image in images:
        place = f"{file}: {json.dumps(image)[:100]}"
        missing = [key for key in ("id", "file_name", "width", "height") if key not in image]
        if missing:
            advice = "Detectron2 needs id, file_name, width and height of an image."
            findings.add(
                "error", "images without a field", advice, f"{place} has no {', '.join(missing)}"
            )
            continue
        if not is_id(image["id"]):
            advice = "Ids are whole numbers, or text."
            findings.add(
                "error", "images with an invalid id", advice, f"{place}: id is {image['id']!r}"
            )
            continue
        has_size = all(
            is_number(image[key]) and 0 < image[key] <= MAX_SIDE for key in ("width", "height")
        )
        if not has_size or not isinstance(image["file_name"], str) or not image["file_name"]:
            advice = "file_name is text, width and height are pixels."
            findings.add("error", "images with an invalid file name or size", advice, place)
            continue
        if not is_file_name(image["file_name"]):
            place = f"{file}: image {image['id']}, {image['file_name']!r}"
            findings.add("error", *INVALID_NAME, place)
            continue
        if image["id"] in by_id:
            place = f"{file}: id {image['id']} of {by_id[image['id']]['file_name']} and {image['file_name']}"
            findings.add(
                "error",
                "image ids given twice",
                "Boxes would land on the wrong image: number the images anew.",
                place,
            )
            continue
        by_id[image["id"]] = image
    _check_file_names(by_id, file, findings)
    return by_id


def _check_file_names(images: dict[Any, dict[str, Any]], file: Path, findings: Findings) -> None:
    ids_of = defaultdict(list)
    for image_id, image in images.items():
        ids_of[image["file_name"]].append(image_id)
    for name, ids in ids_of.items():
        if len(ids) > 1:
            advice = "Join their annotations under one id; each would be background in the other."
            findings.add(
                "warning",
                "image files listed more than once",
                advice,
                f"{file}: {name} as ids {shorten(ids)}",
            )
    for image_id, image in images.items():
        path = PurePosixPath(image["file_name"].replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            place = f"{file}: image {image_id}, {image['file_name']}"
            findings.add(
                "warning",
                "file names that leave the folder of the images",
                "Make them relative to it.",
                place,
            )


def check_coco_categories(
    categories: list[dict[str, Any]], file: Path, findings: Findings
) -> dict[Any, str]:
    """Category names by id."""
    names = {
        x["id"]: x["name"]
        for x in categories
        if is_whole(x.get("id")) and isinstance(x.get("name"), str)
    }
    if len(names) < len(categories) or not names:
        advice = "Each needs an id of its own, a whole number, and a name."
        wrong = [json.dumps(x)[:60] for x in categories if x.get("name") not in names.values()]
        place = f"{file}: {shorten(wrong or [json.dumps(x)[:60] for x in categories]) or 'there are none'}"
        findings.add(
            "error", "annotation files with categories that have no id or name", advice, place
        )
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        advice = "They train as different classes: join them, or give them different names."
        findings.add(
            "warning",
            "annotation files with categories of the same name",
            advice,
            f"{file}: {shorten(twice)}",
        )
    ids = sorted(names)
    if ids != list(range(1, len(ids) + 1)):
        mapping = [f"{old} ({names[old]}) -> {new}" for new, old in enumerate(ids)]
        what = "data sets whose category ids have gaps or do not start at 1"
        findings.add("note", what, f"Class ids are {shorten(mapping)}.", str(file))
    return names
