"""Input images and videos, and the output file for each."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from detectron2.config import CfgNode, get_cfg

IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
_DOTTED_KEY = re.compile(r"[A-Z][A-Z_0-9]*(\.\w+)+")


@dataclass
class Inputs:
    """Input files, each with the output file for it.

    Attributes:
        images: from each image to its output file.
        videos: from each video to its output file, an .mp4.
    """

    images: dict[Path, Path] = field(default_factory=dict)
    videos: dict[Path, Path] = field(default_factory=dict)


def find_inputs(paths: Iterable[Path], output: Path) -> Inputs:
    """Find the images and videos, and choose an output file for each.

    Args:
        paths: images, videos, and folders that are searched for images.
        output: the folder to write to; files found in a folder go to a subfolder named after it,
            with the same relative paths.

    Raises:
        FileNotFoundError: a path does not exist.
        ValueError: a file is neither an image nor a video, a folder has no images, or an output
            file would replace an input or another output.
    """
    inputs = Inputs()
    for path in paths:
        suffix = path.suffix.lower()
        if path.is_dir():
            inputs.images.update(_find_images(path, output))
        elif not path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
        elif suffix in VIDEO_SUFFIXES:
            inputs.videos[path] = output / f"{path.stem}.mp4"
        elif suffix in IMAGE_SUFFIXES:
            inputs.images[path] = output / path.name
        else:
            raise ValueError(
                f"{path} is not an image ({', '.join(IMAGE_SUFFIXES)}) "
                f"or a video ({', '.join(VIDEO_SUFFIXES)})"
            )
    _check_outputs({**inputs.images, **inputs.videos})
    return inputs


def split_config_options(words: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """Split command-line words at the first one that looks like a config key: (before, rest).

    An existing path is not a key, nor is a word with the suffix of an image or a video.
    """
    # A key is dotted, such as MODEL.DEVICE, or one of the few top-level keys that hold a value.
    top_keys = [key for key, value in get_cfg().items() if not isinstance(value, CfgNode)]
    for i, word in enumerate(words):
        path = Path(word)
        is_key = word in top_keys or _DOTTED_KEY.fullmatch(word)
        is_file = path.suffix.lower() in (*IMAGE_SUFFIXES, *VIDEO_SUFFIXES) or path.exists()
        if is_key and not is_file:
            return words[:i], words[i:]
    return words, []


def _find_images(folder: Path, output: Path) -> dict[Path, Path]:
    files = sorted(x for x in folder.rglob("*") if x.suffix.lower() in IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"{folder} has no image ({', '.join(IMAGE_SUFFIXES)})")
    # Resolved, because "." has an empty name.
    target = output / folder.resolve().name
    return {file: target / file.relative_to(folder) for file in files}


def _check_outputs(outputs: dict[Path, Path]) -> None:
    """Refuse to replace an input, or to write two inputs to one file."""
    inputs = {file.resolve(): file for file in outputs}
    sources: dict[Path, Path] = {}
    for file, out_file in outputs.items():
        # Two folders may have a file of the same name, and two videos may differ only in suffix.
        first = sources.setdefault(out_file, file)
        if first != file:
            raise ValueError(
                f"{first} and {file} would both be drawn to {out_file}; "
                "give them in two calls with an --output each"
            )
        overwritten = inputs.get(out_file.resolve())
        if overwritten:
            raise ValueError(f"{overwritten} would be overwritten; choose another --output")


def read_frames(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    """Yield (H, W, 3) uint8 BGR frames, up to the end or the first damaged one."""
    while True:
        is_frame, frame = video.read()
        if not is_frame:
            return
        yield frame
