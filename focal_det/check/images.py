"""Checks of image files before anything is trained on them: each is opened and decoded as Detectron2 does."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Optional

import numpy as np
from detectron2.data.detection_utils import _apply_exif_orientation
from PIL import Image
from tqdm import tqdm

from focal_det.data.catalog import sample_evenly
from focal_det.data.voc import is_file_name

from .annotations import INVALID_NAME
from .findings import Findings

_GET_AGAIN = "Training would stop when it comes to them: get them again, or take them out of the annotations."
_MAX_VALUE = 255
_MANY = 0.1  # of the images

# Severity, kind, advice and place.
Fault = tuple[str, str, str, str]


def check_images(
    records: Sequence[Mapping[str, Any]], findings: Findings, *, num_decoded: int = 0
) -> dict[Any, str]:
    """Look for the files of data set dicts and decode some, in parallel and with a progress bar on a terminal.

    Args:
        records: with "file_name" and, as far as known, "width" and "height" in pixels.
        num_decoded: how many to decode, at even distances; 0 for all. Whether a file is there and not empty is asked of all.

    Returns:
        Names of the files by path, and again by what they contain, as far as they were decoded.
    """
    records = [x for x in records if _has_file_name(x, findings)]
    decoded, files, flat = set(sample_evenly(range(len(records)), num_decoded)), {}, []
    with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:
        outcomes = pool.map(lambda i: _look_at(records[i], i in decoded), range(len(records)))
        progress = tqdm(
            outcomes, total=len(records), unit="image", desc="images", leave=False, disable=None
        )
        for record, (faults, digest, is_flat) in zip(records, progress):
            for fault in faults:
                findings.add(*fault)
            flat += [record["file_name"]] if is_flat else []
            for key in filter(None, (os.path.realpath(record["file_name"]), digest)):
                files[key] = str(record["file_name"])
    severity = "warning" if len(flat) > max(1, _MANY * len(decoded)) else "note"
    for file in flat:
        findings.add(
            severity,
            "images of a single colour",
            "There is nothing to see in them: look at them.",
            file,
        )
    if len(decoded) < len(records):
        advice = "The others were looked for only; `focal-det check` without --images decodes all."
        folder = Path(records[0]["file_name"]).parent
        findings.add(
            "note",
            "images of which some were decoded",
            advice,
            f"{folder}: {len(decoded)} of {len(records)}",
        )
    return files


def _has_file_name(record: Mapping[str, Any], findings: Findings) -> bool:
    name = str(record["file_name"])
    if is_file_name(name):
        return True
    findings.add("error", *INVALID_NAME, f"{name!r} (image {record.get('image_id')})")
    return False


def _look_at(
    record: Mapping[str, Any], is_decoded: bool
) -> tuple[list[Fault], Optional[bytes], bool]:
    """What is wrong with an image; if it was decoded, a digest of the file; and whether all its pixels are the same (no digest)."""
    file = record["file_name"]
    if not os.path.isfile(file):
        return (
            [
                (
                    "error",
                    "images that do not exist",
                    "Put them there, or correct the folder or the names.",
                    file,
                )
            ],
            None,
            False,
        )
    if os.path.getsize(file) == 0:
        return [("error", "image files without content", _GET_AGAIN, file)], None, False
    if not is_decoded:
        return [], None, False
    try:
        with Image.open(file) as image:
            image.load()
            is_deep = _is_deep(image)
            pixels = np.asarray(image) if is_deep else np.reshape(image.getextrema(), (-1, 2)).T
            faults = [
                x
                for x in (
                    _find_size_fault(image, record),
                    _find_value_fault(image.mode, pixels, file),
                )
                if x
            ]
    except Exception as error:  # Pillow has many ways to say it
        return (
            [("error", "images that cannot be decoded", _GET_AGAIN, f"{file}: {error}")],
            None,
            False,
        )
    if (pixels == pixels[:1, :1] if is_deep else pixels[0] == pixels[1]).all():
        return faults, None, True
    return faults, hashlib.blake2b(Path(file).read_bytes(), digest_size=16).digest(), False


def _find_size_fault(image: Image.Image, record: Mapping[str, Any]) -> Optional[Fault]:
    width, height = _apply_exif_orientation(image).size
    expected = record.get("width", width), record.get("height", height)
    if (width, height) == expected:
        return None
    advice = "Training stops at them. Correct width and height in the annotations, and look whether the boxes fit."
    place = f"{record['file_name']} is {width} x {height}, the annotations say {expected[0]} x {expected[1]}"
    return "error", "images of another size than the annotations say", advice, place


def find_value_fault(file: Path) -> Optional[Fault]:
    """What `check_images` says of the pixels of an image file, if anything: values above 8 bits.

    Raises:
        Exception: of Pillow; the file cannot be decoded.
    """
    with Image.open(file) as image:
        if not _is_deep(image):
            return None  # without decoding it
        return _find_value_fault(image.mode, np.asarray(image), str(file))


def _is_deep(image: Image.Image) -> bool:
    """Whether pixels may have more than 8 bits; of these, Pillow does not know all extrema."""
    return image.mode.startswith(("I", "F"))


def _find_value_fault(mode: str, values: np.ndarray, file: str) -> Optional[Fault]:
    """Pixels that Detectron2 cannot show: it makes 8 bits a channel of them by cutting."""
    lowest, highest = values.min(), values.max()
    if (
        lowest >= 0
        and highest <= _MAX_VALUE
        and (mode != "F" or (values == np.floor(values)).all())
    ):
        return None
    advice = "Detectron2 cuts values to whole numbers from 0 to 255: convert them."
    return (
        "error",
        "images of more than 8 bits",
        advice,
        f"{file}: mode {mode}, values from {lowest:g} to {highest:g}",
    )


def check_overlap(
    train: Mapping[str, Mapping[Any, str]],
    test: Mapping[str, Mapping[Any, str]],
    findings: Findings,
) -> None:
    """Find images of the test sets among those of the training sets.

    Args:
        train, test: what `check_images` returns, by data set.
    """
    for test_name, test_files in test.items():
        if test_name in train:
            advice = "Figures will be better than on images that the model has not seen."
            findings.add("note", "test sets that are trained on", advice, test_name)
            continue
        for train_name, train_files in train.items():
            common = {test_files[x]: train_files[x] for x in test_files.keys() & train_files.keys()}
            for file, other in sorted(common.items()):
                advice = "Figures will be better than on images that the model has not seen: keep the sets apart."
                place = f"{file} ({test_name}) is {other} ({train_name})"
                findings.add("warning", "images of a test set that are trained on", advice, place)
