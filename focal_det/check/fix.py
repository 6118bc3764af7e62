"""A corrected copy of a COCO json: what can be known is filled in, what cannot be used is left out, and all of it is told."""

import copy
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from focal_det.messages import shorten

from .annotations import (
    CUT,
    MAX_SIDE,
    TWICE,
    check_form,
    describe_box_fault,
    find_annotation_fault,
    get_object_key,
    is_id,
    is_number,
    is_whole,
)
from .coco import (
    check_coco_categories,
    check_coco_images,
    drop_of_broken_images,
)
from .findings import Findings

_MAX_REMOVED, _FEW = (
    0.2,
    5,
)  # of the annotations, and in number; what takes out more is no correction


def fix_coco(content: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A copy without what cannot be used, with missing fields filled in and boxes cut at the image; and what was changed.

    An image id that is given twice is not corrected: nobody knows which of the images an annotation belongs to.

    Raises:
        ValueError: what is wrong is wrong with all in the same way, or more than a fifth (and than five) would have to go.
    """
    fixed, changes, unsure = copy.deepcopy(content), defaultdict(list), Findings()
    annotations, images = (
        fixed["annotations"],
        check_coco_images(fixed["images"], Path(), Findings()),
    )
    names = check_coco_categories(fixed["categories"], Path(), Findings())
    for annotation in annotations:
        _convert(annotation, images, names, changes)
    check_form(annotations, images, names, Path("the file"), unsure)
    first = next(iter(unsure), None)
    if first:
        raise ValueError(str(first))
    checked, kept, seen = {id(x) for x in drop_of_broken_images(fixed, images)}, [], set()
    for annotation in annotations:
        _fill_in(annotation, images, changes)
        key, is_crowd = get_object_key(annotation), annotation["iscrowd"]
        is_copy, (what, _) = (
            not is_crowd and key in seen,
            find_annotation_fault(annotation, images, names) or ("", ""),
        )
        if is_copy or (what not in ("", CUT) and id(annotation) in checked):
            changes[f"removed: {TWICE if is_copy else what}"].append(annotation["id"])
            continue
        if what == CUT:
            annotation["bbox"] = _cut(annotation["bbox"], images[annotation["image_id"]])
            annotation["area"] = min(
                annotation["area"], annotation["bbox"][2] * annotation["bbox"][3]
            )
            changes[f"cut: {what}"].append(annotation["id"])
        seen.update([] if is_crowd else [key])
        kept.append(annotation)
    _refuse_large_losses(changes, len(annotations))
    fixed["annotations"] = kept
    _number(kept, changes)
    return fixed, [
        f"{what} ({len(ids)}): annotation {shorten(ids)}" for what, ids in changes.items()
    ]


def _refuse_large_losses(changes: dict[str, list], num_annotations: int) -> None:
    removed = {what: len(ids) for what, ids in changes.items() if what.startswith("removed")}
    if sum(removed.values()) > max(_FEW, _MAX_REMOVED * num_annotations):
        reasons = "; ".join(
            f"{what.removeprefix('removed: ')} ({count})" for what, count in removed.items()
        )
        num_removed = f"{sum(removed.values())} of {num_annotations} annotations"
        raise ValueError(
            f"{num_removed} would be removed, which is no correction: {reasons}. Find out what is wrong with them"
        )


def _number(annotations: list[dict[str, Any]], changes: dict[str, list]) -> None:
    """Give annotations without an id of their own, or with one that is no good, a new one."""
    ids = Counter(x["id"] for x in annotations)
    free = int(max((*ids, 0)))
    for annotation in annotations:
        if ids[annotation["id"]] > 1 or annotation["id"] <= 0:
            ids[annotation["id"]] -= 1
            free += 1
            changes["numbered anew, to"].append(free)
            annotation["id"] = free


def _convert(
    annotation: dict[str, Any], images: dict, names: dict, changes: dict[str, list]
) -> None:
    """Make numbers of text that is a number: ids, where there are none of the text, and boxes."""
    for key, known in (("image_id", images), ("category_id", names)):
        value = annotation.get(key)
        if (
            isinstance(value, str)
            and value not in known
            and value.isdecimal()
            and int(value) in known
        ):
            annotation[key] = int(value)
            changes[f"converted: {key} from text"].append(annotation.get("id"))
    box = annotation.get("bbox")
    if isinstance(box, list) and any(isinstance(x, str) for x in box):
        try:
            annotation["bbox"] = [float(x) for x in box]
        except (TypeError, ValueError):
            return
        changes["converted: bbox from text"].append(annotation.get("id"))


def _fill_in(annotation: dict[str, Any], images: dict, changes: dict[str, list]) -> None:
    """Give an annotation what can be known: an id to be numbered, no crowd, the area of its box."""
    if not is_whole(annotation.get("id")):
        annotation["id"] = 0
    has_image = is_id(annotation.get("image_id")) and annotation["image_id"] in images
    if has_image and describe_box_fault(annotation.get("bbox"), images[annotation["image_id"]]) in (
        None,
        CUT,
    ):
        area = annotation.get("area")
        if not is_number(area) or not 0 <= area <= MAX_SIDE**2:
            annotation["area"] = annotation["bbox"][2] * annotation["bbox"][3]
            changes["filled in: area"].append(annotation["id"])
    if "iscrowd" not in annotation:
        annotation["iscrowd"] = 0
        changes["filled in: iscrowd"].append(annotation["id"])


def _cut(box: list[float], image: dict[str, Any]) -> list[float]:
    x0, y0 = max(box[0], 0), max(box[1], 0)
    return [
        x0,
        y0,
        min(box[0] + box[2], image["width"]) - x0,
        min(box[1] + box[3], image["height"]) - y0,
    ]
