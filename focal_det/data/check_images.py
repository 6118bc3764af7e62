"""Checks of image files before anything is trained on them: each is opened and decoded as Detectron2 does."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Optional

from PIL import Image, ImageOps
from tqdm import tqdm

from focal_det.data.findings import Findings

_GET_AGAIN = "Training would stop when it comes to them: get them again, or take them out of the annotations."


def check_images(records: Sequence[dict[str, Any]], findings: Findings, *, workers: Optional[int] = None) -> None:
    """Decode the images of data set dicts, in parallel and with a progress bar.

    Args:
        records: with "file_name" and, as far as known, "width" and "height" in pixels.
        workers: threads; by default two for each core.
    """
    with ThreadPoolExecutor(workers or 2 * (os.cpu_count() or 1)) as pool:
        faults = pool.map(_find_fault, records)
        for fault in tqdm(faults, total=len(records), unit="image", desc="images", leave=False):
            if fault is not None:
                findings.add("error", *fault)


def _find_fault(record: dict[str, Any]) -> Optional[tuple[str, str, str]]:
    """Kind, advice and place of what is wrong with an image, if anything."""
    file = record["file_name"]
    if not os.path.isfile(file):
        return "images that do not exist", "Put them there, or correct the folder or the names.", file
    if os.path.getsize(file) == 0:
        return "image files without content", _GET_AGAIN, file
    try:
        with Image.open(file) as image:
            image.load()
            size = ImageOps.exif_transpose(image).size
    except Exception as error:  # Pillow has many ways to say it
        return "images that cannot be decoded", _GET_AGAIN, f"{file}: {error}"
    expected = record.get("width", size[0]), record.get("height", size[1])
    if size != expected:
        advice = "Training stops at them. Correct width and height in the annotations, and look whether the boxes fit."
        place = f"{file} is {size[0]} x {size[1]}, the annotations say {expected[0]} x {expected[1]}"
        return "images of another size than the annotations say", advice, place
    return None
