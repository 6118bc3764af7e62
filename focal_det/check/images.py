"""Checks of image files: missing, empty, undecodable, of a wrong size, or in two sets."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

import numpy as np
from detectron2.data.detection_utils import _apply_exif_orientation
from PIL import Image
from tqdm import tqdm

from focal_det.data.catalog import sample_evenly
from focal_det.data.voc import is_file_name

from .data_rules import (
    DEEP_PIXELS,
    EMPTY_IMAGE_FILE,
    FLAT_IMAGE,
    IMPOSSIBLE_FILE_NAME,
    MISSING_IMAGE,
    NOT_ALL_DECODED,
    OTHER_IMAGE_SIZE,
    TEST_IMAGE_TRAINED_ON,
    TEST_SET_TRAINED_ON,
    UNDECODABLE_IMAGE,
)
from .findings import Findings
from .plan import Plan
from .rules import Rule
from .stages import Stage, register_check

_MAX_VALUE = 255
_MANY = 0.1  # of the decoded images

# The rule that an image breaks, and where.
Fault = tuple[Rule, str]


@dataclass
class _Outcome:
    """What was seen of an image file.

    Attributes:
        faults: as `Findings.add` takes them.
        digest: of the file, if it was decoded and is not flat.
        is_flat: all its pixels are the same.
    """

    faults: list[Fault] = field(default_factory=list)
    digest: Optional[bytes] = None
    is_flat: bool = False


@register_check(Stage.DATA)
def check_image_files(plan: Plan, findings: Findings) -> None:
    """Check the files of all data sets, and find images of test sets that are trained on."""
    for dataset in plan.datasets:
        dataset.files = check_images(dataset.images, findings, num_decoded=plan.num_decoded)
    if plan.only:
        return
    files = {x.name: x.files for x in plan.datasets}
    check_overlap(
        {name: files[name] for name in plan.get_names("TRAIN") if name in files},
        {name: files[name] for name in plan.get_names("TEST") if name in files},
        findings,
    )


def check_images(
    records: Sequence[Mapping[str, Any]], findings: Findings, *, num_decoded: int = 0
) -> dict[Any, str]:
    """Check files in parallel, with a progress bar on a terminal.

    Args:
        records: with "file_name" and, as far as known, "width" and "height" in pixels.
        num_decoded: how many to decode, at even distances; 0 for all. Every file is
            checked for being missing or empty.

    Returns:
        File names by real path and, for decoded images of more than one colour, also by digest of
        the content.
    """
    records = [x for x in records if _has_file_name(x, findings)]
    decoded = set(sample_evenly(range(len(records)), num_decoded))
    files: dict[Any, str] = {}
    flat = []
    with ThreadPoolExecutor(2 * (os.cpu_count() or 1)) as pool:
        outcomes = pool.map(lambda i: _look_at(records[i], i in decoded), range(len(records)))
        progress = tqdm(
            outcomes, total=len(records), unit="image", desc="images", leave=False, disable=None
        )
        for record, outcome in zip(records, progress):
            file = record["file_name"]
            for rule, place in outcome.faults:
                findings.add(rule, place)
            if outcome.is_flat:
                flat.append(file)
            files[os.path.realpath(file)] = str(file)
            # Flat images, such as the black ones of a set, are alike without being copies.
            if outcome.digest:
                files[outcome.digest] = str(file)
    is_many = len(flat) > max(1, _MANY * len(decoded))
    for file in flat:
        findings.add(FLAT_IMAGE, file, severity="warning" if is_many else None)
    if len(decoded) < len(records):
        folder = Path(records[0]["file_name"]).parent
        findings.add(NOT_ALL_DECODED, f"{folder}: {len(decoded)} of {len(records)}")
    return files


def _has_file_name(record: Mapping[str, Any], findings: Findings) -> bool:
    name = str(record["file_name"])
    if is_file_name(name):
        return True
    findings.add(IMPOSSIBLE_FILE_NAME, f"{name!r} (image {record.get('image_id')})")
    return False


def _look_at(record: Mapping[str, Any], is_decoded: bool) -> _Outcome:
    file = record["file_name"]
    if not os.path.isfile(file):
        return _Outcome([(MISSING_IMAGE, file)])
    if os.path.getsize(file) == 0:
        return _Outcome([(EMPTY_IMAGE_FILE, file)])
    if not is_decoded:
        return _Outcome()
    try:
        return _decode(record)
    except Exception as error:  # Pillow raises many kinds of errors
        return _Outcome([(UNDECODABLE_IMAGE, f"{file}: {error}")])


def _decode(record: Mapping[str, Any]) -> _Outcome:
    """Decode an image; raises whatever Pillow raises."""
    file = record["file_name"]
    with Image.open(file) as image:
        image.load()
        if _is_deep(image):
            values = np.asarray(image)
            is_flat = bool((values == values[:1, :1]).all())
        else:
            # Lowest and highest value of each channel, which Pillow finds faster than numpy.
            values = np.reshape(image.getextrema(), (-1, 2)).T
            is_flat = bool((values[0] == values[1]).all())
        found = [
            _find_size_fault(image, record),
            _find_value_fault(image.mode, values, file),
        ]
    faults = [x for x in found if x]
    if is_flat:
        return _Outcome(faults, is_flat=True)
    digest = hashlib.blake2b(Path(file).read_bytes(), digest_size=16).digest()
    return _Outcome(faults, digest)


def _find_size_fault(image: Image.Image, record: Mapping[str, Any]) -> Optional[Fault]:
    width, height = _apply_exif_orientation(image).size
    said_width = record.get("width", width)
    said_height = record.get("height", height)
    if (width, height) == (said_width, said_height):
        return None
    file = record["file_name"]
    place = f"{file} is {width} x {height}, but the annotations say {said_width} x {said_height}"
    return OTHER_IMAGE_SIZE, place


def find_value_fault(file: Path) -> Optional[Fault]:
    """What `check_images` finds in the pixels of an image file: values that 8 bits cannot hold.

    Raises:
        Exception: Pillow cannot decode the file.
    """
    with Image.open(file) as image:
        if not _is_deep(image):
            return None  # without decoding it
        return _find_value_fault(image.mode, np.asarray(image), str(file))


def _is_deep(image: Image.Image) -> bool:
    """Whether pixels may have more than 8 bits; Pillow does not know all extrema of such images."""
    return image.mode.startswith(("I", "F"))


def _find_value_fault(mode: str, values: np.ndarray, file: str) -> Optional[Fault]:
    """Pixel values that do not survive Detectron2's conversion to 8 bits per channel."""
    lowest = values.min()
    highest = values.max()
    is_whole = mode != "F" or (values == np.floor(values)).all()
    if lowest >= 0 and highest <= _MAX_VALUE and is_whole:
        return None
    return DEEP_PIXELS, f"{file}: mode {mode}, values from {lowest:g} to {highest:g}"


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
            findings.add(TEST_SET_TRAINED_ON, test_name)
            continue
        for train_name, train_files in train.items():
            common = {test_files[x]: train_files[x] for x in test_files.keys() & train_files.keys()}
            for file, other in sorted(common.items()):
                place = f"{file} ({test_name}) is the same as {other} ({train_name})"
                findings.add(TEST_IMAGE_TRAINED_ON, place)
