"""From PASCAL VOC folders, with any classes and image types, to Detectron2's dataset dicts.

Detectron2's `load_voc_instances` gives the same dicts for correct `.jpg` data. This reader also
names the file, the class and the fix where the data is not correct. It leaves out and logs boxes
that are non-finite or have xmin >= xmax or ymin >= ymax, such as clicks without a drag
(xmin = xmax), which Detectron2 reads as one pixel wide.
"""

import logging
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

from detectron2.structures import BoxMode
from detectron2.utils.logger import log_first_n

from focal_det.host import LOGGER_NAME
from focal_det.messages import describe_unknown

from .boxes import is_usable

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
# The common ones in upper case as well, for case-sensitive file systems.
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".JPG", ".JPEG", ".PNG")


def load_voc(root: Path, split: str, classes: Sequence[str], name: str) -> list[dict[str, Any]]:
    """Read `ImageSets/Main/<split>.txt` and the annotations it names.

    Boxes become 0-based XYXY in absolute pixels. VOC counts from 1 and includes the last pixel, so
    1 is subtracted from xmin and ymin.

    Args:
        root: folder with `Annotations`, `ImageSets/Main` and `JPEGImages`.
        classes: names in the order of the class ids 0..K-1.
        name: name of the data set, for messages.

    Returns:
        One dict per image with "file_name", "image_id" (the name without suffix), "height", "width"
        and "annotations".

    Raises:
        FileNotFoundError: the list of the split, an annotation or an image does not exist.
        ValueError: an invalid annotation, or a class that is not in `classes`; names the file.
    """
    records, without_area = read_voc(root, split, classes, name)
    report_boxes_without_area(name, without_area)
    return records


def read_voc(
    root: Path, split: str, classes: Sequence[str], name: str, errors: Optional[list[str]] = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """Read a split as `load_voc` does, but return the boxes left out instead of logging them.

    Args:
        errors: receives a message for each unreadable image, which is left out; with None, the
            first error is raised.

    Returns:
        The dicts of `load_voc`, and a description of each box that is left out.
    """
    records: list[dict[str, Any]] = []
    without_area: list[str] = []
    for image_id in _read_split(root, split, name):
        try:
            record = _read_image(root, image_id, classes)
        except (ValueError, OSError) as error:
            if errors is None:
                raise
            errors.append(str(error))
            continue
        # Checked before the shift by a pixel, which would give a click without a drag an area.
        kept = [x for x in record["annotations"] if _has_area(x["bbox"])]
        dropped = [x for x in record["annotations"] if not _has_area(x["bbox"])]
        without_area += [f"{image_id} ({classes[x['category_id']]} {x['bbox']})" for x in dropped]
        for annotation in kept:
            x0, y0, x1, y1 = annotation["bbox"]
            annotation["bbox"] = [x0 - 1, y0 - 1, x1, y1]
        records.append({**record, "annotations": kept})
    return records, without_area


def find_evaluation_faults(root: Path, split: str) -> Iterator[str]:
    """Find what training can read but Detectron2's VOC evaluator cannot.

    The evaluator reads every file of the split. It takes a whole line of the list as a name, and
    needs `pose`, `truncated`, `difficult` and whole numbers for each object.

    Yields:
        Faults with their file and line, or file and object.
    """
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if len(line.split()) != 1:
            yield f"{path}, line {number}: {line!r} is not just a name"
            continue
        file = root / "Annotations" / f"{line.strip()}.xml"
        try:
            objects = ElementTree.parse(file).findall("object")
        except (OSError, ValueError, ElementTree.ParseError):
            # Training cannot read it either, which `read_voc` reports.
            continue
        for index, node in enumerate(objects):
            for fault in _find_object_faults(node):
                yield f"{file}, object {index}: {fault}"


def _find_object_faults(node: ElementTree.Element) -> Iterator[str]:
    for key in ("pose", "truncated", "difficult", *(f"bndbox/{x}" for x in _CORNERS)):
        name = key.split("/")[-1]
        found = node.find(key)
        if found is None:
            yield f"no {name}"
            continue
        text = found.text or ""
        if key != "pose" and not re.fullmatch(r"\s*[+-]?\d+\s*", text):
            yield f"{name} {text!r} is not a whole number"


def report_boxes_without_area(name: str, boxes: Sequence[str]) -> None:
    """Warn about boxes of data set `name` that are left out: without area, or non-finite."""
    if not boxes:
        return
    shown = "; ".join(boxes[:5])
    if len(boxes) > 5:
        shown += "; ..."
    message = (
        f"Data set {name}: {len(boxes)} boxes without area, or non-finite, are left out: {shown}. "
        "Correct the annotations."
    )
    # A data set is loaded several times in a run, by the sampler and the evaluator among others.
    log_first_n(logging.WARNING, message, name=LOGGER_NAME, key="message")


def _has_area(box: Sequence[float]) -> bool:
    x0, y0, x1, y1 = box
    return is_usable([x0, y0, x1 - x0, y1 - y0])


def _read_split(root: Path, split: str, name: str) -> list[str]:
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        # The usual slip is a split that the data set calls by another name.
        known = [p.stem for p in path.parent.glob("*.txt")]
        raise FileNotFoundError(
            f"Data set {name}: {path} does not exist. {describe_unknown('split', split, known)}"
        )
    image_ids = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        words = line.split()
        if not words:
            continue
        # Lists of one class have a flag after the name.
        image_id = words[0]
        if not is_file_name(image_id):
            raise ValueError(f"{path}, line {number}: {image_id!r} is not a file name")
        image_ids.append(image_id)
    return image_ids


def _read_image(root: Path, image_id: str, classes: Sequence[str]) -> dict[str, Any]:
    """Dataset dict of one image, with boxes as VOC has them."""
    image_file = _find_image(root / "JPEGImages", image_id)
    annotation_file = root / "Annotations" / f"{image_id}.xml"
    if not annotation_file.is_file():
        raise FileNotFoundError(f"{annotation_file} does not exist, but {image_id} is listed")
    try:
        root_node = ElementTree.parse(annotation_file).getroot()
        size = {key: int(_read_text(root_node, f"size/{key}")) for key in ("height", "width")}
        objects = [_read_object(node) for node in root_node.findall("object")]
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(
            f"{annotation_file} is not a VOC annotation ({error}): it needs size/width, "
            "size/height and, per object, name and bndbox with xmin, ymin, xmax, ymax"
        ) from error

    for class_name, _ in objects:
        if class_name not in classes:
            raise ValueError(f"{annotation_file}: {describe_unknown('class', class_name, classes)}")
    annotations = [
        {"category_id": classes.index(class_name), "bbox": box, "bbox_mode": BoxMode.XYXY_ABS}
        for class_name, box in objects
    ]
    return {"file_name": str(image_file), "image_id": image_id, **size, "annotations": annotations}


def _find_image(folder: Path, image_id: str) -> Path:
    for suffix in IMAGE_SUFFIXES:
        file = folder / f"{image_id}{suffix}"
        if file.is_file():
            return file
    raise FileNotFoundError(f"{folder} has no image {image_id} ({', '.join(IMAGE_SUFFIXES[:6])})")


def _read_object(node: ElementTree.Element) -> tuple[str, list[float]]:
    """Class name and XYXY box of an object."""
    name = _read_text(node, "name").strip()
    return name, [float(_read_text(node, f"bndbox/{key}")) for key in _CORNERS]


def _read_text(node: ElementTree.Element, path: str) -> str:
    """Text of the first element at a path below the node."""
    text = node.findtext(path)
    # "" is an element without text.
    if not text:
        raise ValueError(f"no {path}")
    return text


def is_file_name(name: str) -> bool:
    """Whether the system can have a file of this name."""
    # No file name has a NUL, or half of a surrogate pair, which json may contain.
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False
