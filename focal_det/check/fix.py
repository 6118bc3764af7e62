"""A corrected copy of a COCO JSON, and a list of all that was changed."""

import copy
import enum
import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from detectron2.data import MetadataCatalog

from focal_det.data.boxes import is_usable
from focal_det.files import write_text
from focal_det.messages import shorten

from .annotations import find_annotation_fault, get_object_key, is_area
from .box_format import check_form
from .coco import check_coco_categories, check_coco_images, drop_of_broken_images
from .data_rules import BOX_CUT, DUPLICATE_OBJECT
from .findings import Findings
from .json_file import read_coco
from .values import is_id, is_whole

# A correction may remove at most this share of the annotations, or this number if that is more.
_MAX_REMOVED_SHARE = 0.2
_MAX_REMOVED = 5


class _Action(enum.Enum):
    CONVERTED = "converted"
    FILLED_IN = "filled in"
    REMOVED = "removed"
    CUT = "cut"
    NUMBERED = "renumbered"


class _Changes:
    """Ids of the annotations that were changed, by action and reason."""

    def __init__(self) -> None:
        self._ids: dict[tuple[_Action, str], list] = defaultdict(list)

    def add(self, action: _Action, reason: str, annotation_id: Any) -> None:
        self._ids[action, reason].append(annotation_id)

    def count(self, action: _Action) -> dict[str, int]:
        """Number of annotations by reason."""
        return {reason: len(ids) for (x, reason), ids in self._ids.items() if x is action}

    def describe(self) -> list[str]:
        return [
            f"{action.value}: {reason} ({len(ids)}): annotation {shorten(ids)}"
            for (action, reason), ids in self._ids.items()
        ]


def write_fixed(name: str, out_file: Path) -> str:
    """Write a corrected copy of a data set's COCO JSON; return a text that says what was changed.

    Raises:
        ValueError: there is no JSON, it cannot be read or corrected, or it is `out_file` itself.
    """
    file = Path(MetadataCatalog.get(name).get("json_file", ""))
    if not file.is_file():
        raise ValueError(f"--fix: {name} has no COCO JSON")
    if out_file.resolve() == file.resolve():
        raise ValueError(f"--fix: {out_file} is the original; write to another file")
    content = read_coco(file, Findings())
    if content is None:
        raise ValueError(f"--fix: {file} cannot be read")
    fixed, changes = fix_coco(content)
    out_file.parent.mkdir(parents=True, exist_ok=True)
    write_text(out_file, json.dumps(fixed))
    head = f"corrected copy written to {out_file}; point the data set to it and run the check again"
    return "\n  ".join([head, *(changes or ["nothing to correct"])])


def fix_coco(content: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A copy without unusable annotations, with missing fields filled in and boxes cut.

    A duplicate image id is not corrected: nobody knows which image an annotation belongs to.

    Returns:
        The copy, and what was changed.

    Raises:
        ValueError: all annotations share a fault, or more than a fifth (and more than five) of them
            would be removed.
    """
    # The caller may compare the copy with the original.
    fixed = copy.deepcopy(content)
    annotations = fixed["annotations"]
    changes = _Changes()
    # Only the valid images and categories are used here; the check reports the others.
    images = check_coco_images(fixed["images"], Path(), Findings())
    names = check_coco_categories(fixed["categories"], Path(), Findings())
    for annotation in annotations:
        _convert(annotation, images, names, changes)
    # A fault that all annotations share comes from the export: cutting or removing would hide it.
    shared = Findings()
    check_form(annotations, images, names, Path("the file"), shared)
    first = next(iter(shared), None)
    if first:
        raise ValueError(str(first))
    for annotation in annotations:
        _fill_in(annotation, images, changes)
    fixed["annotations"] = _keep_usable(fixed, images, names, changes)
    _refuse_large_losses(changes, len(annotations))
    _number(fixed["annotations"], changes)
    return fixed, changes.describe()


def _convert(annotation: dict[str, Any], images: dict, names: dict, changes: _Changes) -> None:
    """Convert numbers written as text: in boxes, and in ids unless the text is a known id."""
    for key, known in (("image_id", images), ("category_id", names)):
        value = annotation.get(key)
        if not isinstance(value, str) or value in known:
            continue
        if value.isdecimal() and int(value) in known:
            annotation[key] = int(value)
            changes.add(_Action.CONVERTED, f"{key} from text", annotation.get("id"))
    box = annotation.get("bbox")
    if isinstance(box, list) and any(isinstance(x, str) for x in box):
        try:
            annotation["bbox"] = [float(x) for x in box]
        except (TypeError, ValueError):
            return
        changes.add(_Action.CONVERTED, "bbox from text", annotation.get("id"))


def _fill_in(annotation: dict[str, Any], images: dict, changes: _Changes) -> None:
    """Fill in an id and the area of the box unless they are valid, and a missing iscrowd as 0."""
    if not is_whole(annotation.get("id")):
        # `_number` gives it a free id at the end.
        annotation["id"] = 0
    image_id = annotation.get("image_id")
    image = images.get(image_id) if is_id(image_id) else None
    box: Any = annotation.get("bbox")
    has_box = image is not None and is_usable(box, (image["width"], image["height"]))
    if has_box and not is_area(annotation.get("area")):
        annotation["area"] = box[2] * box[3]
        changes.add(_Action.FILLED_IN, "area", annotation["id"])
    if "iscrowd" not in annotation:
        annotation["iscrowd"] = 0
        changes.add(_Action.FILLED_IN, "iscrowd", annotation["id"])


def _keep_usable(
    content: dict[str, Any], images: dict, names: dict, changes: _Changes
) -> list[dict[str, Any]]:
    """The annotations without duplicates and faulty ones, and with boxes cut to their images."""
    # Annotations of broken images stay: a person must correct the images.
    checked = {id(x) for x in drop_of_broken_images(content, images)}
    kept = []
    seen = set()
    for annotation in content["annotations"]:
        key = get_object_key(annotation)
        is_crowd = annotation["iscrowd"]
        rule = None
        fault = find_annotation_fault(annotation, images, names)
        if not is_crowd and key in seen:
            rule = DUPLICATE_OBJECT
        elif fault and id(annotation) in checked:
            rule, _ = fault
        if rule is BOX_CUT:
            _cut(annotation, images[annotation["image_id"]])
            changes.add(_Action.CUT, rule.title, annotation["id"])
        elif rule:
            changes.add(_Action.REMOVED, rule.title, annotation["id"])
            continue
        if not is_crowd:
            seen.add(key)
        kept.append(annotation)
    return kept


def _cut(annotation: dict[str, Any], image: dict[str, Any]) -> None:
    """Cut a box at the edges of its image; `area` is kept unless the cut box is smaller."""
    x, y, width, height = annotation["bbox"]
    left = max(x, 0)
    top = max(y, 0)
    right = min(x + width, image["width"])
    bottom = min(y + height, image["height"])
    annotation["bbox"] = [left, top, right - left, bottom - top]
    annotation["area"] = min(annotation["area"], (right - left) * (bottom - top))


def _refuse_large_losses(changes: _Changes, num_annotations: int) -> None:
    removed = changes.count(_Action.REMOVED)
    num_removed = sum(removed.values())
    if num_removed > max(_MAX_REMOVED, _MAX_REMOVED_SHARE * num_annotations):
        reasons = "; ".join(f"{reason} ({count})" for reason, count in removed.items())
        raise ValueError(
            f"a correction would remove {num_removed} of {num_annotations} annotations, which is "
            f"too many: {reasons}. Find the cause first"
        )


def _number(annotations: list[dict[str, Any]], changes: _Changes) -> None:
    """Give new ids to annotations with a duplicate id, or with an id of 0 or less."""
    ids = Counter(x["id"] for x in annotations)
    # Ids above all others cannot collide, and start at 1 in a file without any.
    free = int(max((*ids, 0)))
    for annotation in annotations:
        if ids[annotation["id"]] > 1 or annotation["id"] <= 0:
            ids[annotation["id"]] -= 1
            free += 1
            changes.add(_Action.NUMBERED, "new ids", free)
            annotation["id"] = free
