"""PASCAL VOC folders with any classes and image type, to Detectron2's dataset dicts.

Detectron2's `load_voc_instances` gives the same dicts for correct `.jpg` data; this one also names the file, the class and the fix
where the data is not correct. A box with xmin = xmax or ymin = ymax, a click without a drag, is left out, and the log says which;
Detectron2 reads it as one pixel wide.
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

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".JPG", ".JPEG", ".PNG")


def load_voc(root: Path, split: str, classes: Sequence[str], name: str) -> list[dict[str, Any]]:
    """Read `ImageSets/Main/<split>.txt` and the annotations it names.

    Boxes become 0-based XYXY in absolute pixels: VOC counts from 1 and includes the last pixel, so 1 is taken from xmin and ymin.

    Args:
        root: folder with `Annotations`, `ImageSets/Main` and `JPEGImages`.
        classes: names in the order of the class ids 0..K-1.
        name: name of the data set, for messages.

    Returns:
        One dict per image with "file_name", "image_id" (the name without suffix), "height", "width" and "annotations".

    Raises:
        FileNotFoundError: the list of the split, an annotation or an image does not exist.
        ValueError: an annotation that is not valid, or of a class that is not in `classes`; names the file.
    """
    records, without_area = read_voc(root, split, classes, name)
    report_boxes_without_area(name, without_area)
    return records


def read_voc(
    root: Path, split: str, classes: Sequence[str], name: str, errors: Optional[list[str]] = None
) -> tuple[list[dict[str, Any]], list[str]]:
    """What `load_voc` returns, and each box that is left out, as words.

    Args:
        errors: if a list, gets what is wrong with an image that cannot be read; the image is left out.
    """
    records, without_area = [], []
    for image_id in _read_split(root, split, name):
        try:
            record = _read_image(root, image_id, classes)
        except (ValueError, OSError) as error:
            if errors is None:
                raise
            errors.append(str(error))
            continue
        kept = [x for x in record["annotations"] if _has_area(x["bbox"])]
        dropped = [x for x in record["annotations"] if not _has_area(x["bbox"])]
        without_area += [f"{image_id} ({classes[x['category_id']]} {x['bbox']})" for x in dropped]
        for annotation in kept:
            annotation["bbox"] = [
                annotation["bbox"][0] - 1,
                annotation["bbox"][1] - 1,
                *annotation["bbox"][2:],
            ]
        records.append({**record, "annotations": kept})
    return records, without_area


def find_evaluation_faults(root: Path, split: str) -> Iterator[str]:
    """What training can read and Detectron2's VOC evaluator cannot, with file and line or object.

    The evaluator reads every file of the split: it takes a whole line of the list for a name, wants
    `pose`, `truncated` and `difficult` of each object, and whole numbers.
    """
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    lines = path.read_text().splitlines() if path.is_file() else []
    for number, line in enumerate(lines, start=1):
        if len(line.split()) != 1:
            yield f"{path}, line {number}: {line!r} is not just a name"
            continue
        file = root / "Annotations" / f"{line.strip()}.xml"
        try:
            objects = ElementTree.parse(file).findall("object")
        except (OSError, ValueError, ElementTree.ParseError):
            continue  # not even training can read it, which is reported elsewhere
        for index, node in enumerate(objects):
            for fault in _find_object_faults(node):
                yield f"{file}, object {index}: {fault}"


def _find_object_faults(node: ElementTree.Element) -> Iterator[str]:
    for key in ("pose", "truncated", "difficult", *(f"bndbox/{x}" for x in _CORNERS)):
        name, found = key.split("/")[-1], node.find(key)
        if found is None:
            yield f"no {name}"
        elif key != "pose" and not re.fullmatch(r"\s*[+-]?\d+\s*", found.text or ""):
            yield f"{name} {found.text or ''!r} is not a whole number"


def report_boxes_without_area(name: str, boxes: Sequence[str]) -> None:
    """Warn about the boxes of data set `name` that are left out because they have no area or are not finite."""
    if boxes:
        shown = "; ".join(boxes[:5]) + ("; ..." if len(boxes) > 5 else "")
        message = f"Data set {name}: {len(boxes)} boxes without area are left out: {shown}. Correct the annotations."
        log_first_n(logging.WARNING, message, name=LOGGER_NAME, key="message")


def _has_area(box: Sequence[float]) -> bool:
    return box[2] > box[0] and box[3] > box[1]


def _read_split(root: Path, split: str, name: str) -> list[str]:
    path = root / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        known = [p.stem for p in path.parent.glob("*.txt")]
        raise FileNotFoundError(
            f"Data set {name}: {path} does not exist. {describe_unknown('split', split, known)}"
        )
    names = [line.split()[:1] for line in path.read_text().splitlines()]
    for number, name in enumerate(names, start=1):
        if name and not is_file_name(name[0]):
            raise ValueError(f"{path}, line {number}: {name[0]!r} is not a file name")
    return [x for name in names for x in name]


def _read_image(root: Path, image_id: str, classes: Sequence[str]) -> dict[str, Any]:
    annotation_file = root / "Annotations" / f"{image_id}.xml"
    candidates = (root / "JPEGImages" / f"{image_id}{suffix}" for suffix in IMAGE_SUFFIXES)
    image_file = next((path for path in candidates if path.is_file()), None)
    if image_file is None:
        raise FileNotFoundError(
            f"{root / 'JPEGImages'} has no image {image_id} ({', '.join(IMAGE_SUFFIXES[:6])})"
        )
    if not annotation_file.is_file():
        raise FileNotFoundError(f"{annotation_file} does not exist, but {image_id} is listed")
    try:
        tree = ElementTree.parse(annotation_file)
        size = {key: int(tree.find(f"size/{key}").text) for key in ("height", "width")}
        objects = [_read_object(node) for node in tree.findall("object")]
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{annotation_file} is not a VOC annotation ({error}): it needs size/width, size/height and, per object, name and "
            "bndbox with xmin, ymin, xmax, ymax"
        ) from error
    for class_name, _ in objects:
        if class_name not in classes:
            raise ValueError(f"{annotation_file}: {describe_unknown('class', class_name, classes)}")
    annotations = [
        {"category_id": classes.index(class_name), "bbox": box, "bbox_mode": BoxMode.XYXY_ABS}
        for class_name, box in objects
    ]
    return {"file_name": str(image_file), "image_id": image_id, **size, "annotations": annotations}


def _read_object(node: ElementTree.Element) -> tuple[str, list[float]]:
    box = node.find("bndbox")
    return node.find("name").text.strip(), [float(box.find(key).text) for key in _CORNERS]


def is_file_name(name: str) -> bool:
    """Whether the system can have a file of that name; a NUL or half a surrogate pair is in none."""
    try:
        return b"\0" not in os.fsencode(name)
    except UnicodeEncodeError:
        return False
