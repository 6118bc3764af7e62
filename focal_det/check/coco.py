"""Checks of the images and categories of a COCO JSON, and of the file as a whole."""

import json
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath
from typing import Any, Optional

from focal_det.data.boxes import MAX_SIDE, is_number
from focal_det.data.voc import is_file_name
from focal_det.messages import shorten

from .annotations import check_annotations
from .data_rules import (
    CATEGORY_ID_GAPS,
    DUPLICATE_CATEGORY_NAME,
    DUPLICATE_IMAGE_FILE,
    DUPLICATE_IMAGE_ID,
    FILE_OUTSIDE_FOLDER,
    IMPOSSIBLE_FILE_NAME,
    INCOMPLETE_IMAGE,
    INVALID_CATEGORY,
    INVALID_IMAGE_ID,
    INVALID_IMAGE_SIZE,
    MIXED_IMAGE_IDS,
)
from .empty import check_not_empty, note_empty_images
from .findings import Findings
from .plan import ANY_USE, Use
from .rules import Rule
from .values import is_id, is_whole

_IMAGE_FIELDS = ("id", "file_name", "width", "height")
_MAX_SHOWN = 100  # characters of an image's entry, to know it by
_MAX_SHOWN_CATEGORY = 60


def check_coco(
    content: dict[str, Any], file: Path, findings: Findings, use: Use = ANY_USE
) -> list[dict[str, Any]]:
    """Check images, categories and annotations.

    Args:
        content: from `read_coco`.
        file: where it is from, for messages.

    Returns:
        The images with a valid id, name and size, one for each id.
    """
    annotations = content["annotations"]
    images = check_coco_images(content["images"], file, findings)
    names = check_coco_categories(content["categories"], file, findings)
    checked = drop_of_broken_images(content, images)
    num_usable = check_annotations(checked, images, names, file, findings, is_test=use.is_test)
    # If all annotations belong to broken images, the findings about those images are enough.
    if checked or not annotations:
        counts = f"{len(content['images'])} images, {len(annotations)} annotations"
        place = f"{file}: {counts}, {num_usable} of them usable and not crowds"
        check_not_empty(num_usable, place, findings, use)
    if annotations:
        # An image with crowds alone is empty to Detectron2.
        with_object = {
            x["image_id"]
            for x in annotations
            if is_id(x.get("image_id")) and not x.get("iscrowd", 0)
        }
        num_empty = len(images.keys() - with_object)
        note_empty_images(num_empty, len(images), str(file), findings, use)
    return list(images.values())


def drop_of_broken_images(
    content: dict[str, Any], images: dict[Any, dict[str, Any]]
) -> list[dict[str, Any]]:
    """The annotations of valid images, whose ids are not those of other images, too."""
    counts = Counter(x["id"] for x in content["images"] if is_id(x.get("id")))
    broken = {x for x, count in counts.items() if count > 1 or x not in images}
    return [
        x
        for x in content["annotations"]
        if not (is_id(x.get("image_id")) and x["image_id"] in broken)
    ]


def check_coco_images(
    images: list[dict[str, Any]], file: Path, findings: Findings
) -> dict[Any, dict[str, Any]]:
    """Check the entries of images; returns the good ones by id."""
    id_types = {"str" if isinstance(x["id"], str) else "int" for x in images if is_id(x.get("id"))}
    if len(id_types) > 1:
        findings.add(MIXED_IMAGE_IDS, f"{file}: {', '.join(sorted(id_types))}")
    by_id: dict[Any, dict[str, Any]] = {}
    for image in images:
        fault = _find_image_fault(image, by_id)
        if fault:
            rule, place = fault
            findings.add(rule, f"{file}: {place}")
        else:
            by_id[image["id"]] = image
    _check_file_names(by_id, file, findings)
    return by_id


def _find_image_fault(
    image: dict[str, Any], known: dict[Any, dict[str, Any]]
) -> Optional[tuple[Rule, str]]:
    """The first fault of an image's entry: its rule, and the place within the file."""
    entry = json.dumps(image)[:_MAX_SHOWN]
    missing = [key for key in _IMAGE_FIELDS if key not in image]
    if missing:
        return INCOMPLETE_IMAGE, f"{entry} has no {', '.join(missing)}"
    image_id = image["id"]
    name = image["file_name"]
    if not is_id(image_id):
        return INVALID_IMAGE_ID, f"{entry}: id is {image_id!r}"
    has_size = all(
        is_number(image[key]) and 0 < image[key] <= MAX_SIDE for key in ("width", "height")
    )
    if not has_size or not isinstance(name, str) or not name:
        return INVALID_IMAGE_SIZE, entry
    if not is_file_name(name):
        return IMPOSSIBLE_FILE_NAME, f"image {image_id}, {name!r}"
    if image_id in known:
        return DUPLICATE_IMAGE_ID, f"id {image_id} of {known[image_id]['file_name']} and {name}"
    return None


def _check_file_names(images: dict[Any, dict[str, Any]], file: Path, findings: Findings) -> None:
    ids_of = defaultdict(list)
    for image_id, image in images.items():
        ids_of[image["file_name"]].append(image_id)
    for name, ids in ids_of.items():
        if len(ids) > 1:
            findings.add(DUPLICATE_IMAGE_FILE, f"{file}: {name} as ids {shorten(ids)}")
    for image_id, image in images.items():
        # Files that were written on Windows have its separators.
        path = PurePosixPath(image["file_name"].replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts:
            findings.add(FILE_OUTSIDE_FOLDER, f"{file}: image {image_id}, {image['file_name']}")


def check_coco_categories(
    categories: list[dict[str, Any]], file: Path, findings: Findings
) -> dict[Any, str]:
    """Check the categories; returns the names of the good ones by id."""
    names = {
        x["id"]: x["name"]
        for x in categories
        if is_whole(x.get("id")) and isinstance(x.get("name"), str)
    }
    if len(names) < len(categories) or not names:
        # If two entries have the same id and name, neither alone is wrong: show all categories.
        wrong = [x for x in categories if x.get("name") not in names.values()] or categories
        shown = shorten([json.dumps(x)[:_MAX_SHOWN_CATEGORY] for x in wrong])
        findings.add(INVALID_CATEGORY, f"{file}: {shown or 'no categories'}")
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        findings.add(DUPLICATE_CATEGORY_NAME, f"{file}: {shorten(twice)}")
    ids = sorted(names)
    # Detectron2 renumbers ids other than 1 to K, and says so in one warning among many.
    if ids != list(range(1, len(ids) + 1)):
        mapping = [f"{old} ({names[old]}) -> {new}" for new, old in enumerate(ids)]
        findings.add(CATEGORY_ID_GAPS, str(file), mapping=shorten(mapping))
    return names
