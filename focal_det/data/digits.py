"""A generated detection data set: scanned handwritten digits on cluttered canvases.

The objects are scikit-learn's 1797 real 8x8 scans, enlarged, tilted and inked; the background is a colour gradient with
strokes, arcs, blobs and scrambled scans that look like digits and are none. Nothing is downloaded.

Every canvas has its own random generator, seeded by (version, split, image id), so canvases do not depend on their order. The
bytes are the same wherever NumPy, OpenCV and scikit-learn have the same versions.

Shapes: S canvas side in pixels, K classes, M digits on a canvas; images are BGR, boxes XYWH in whole pixels.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

DIGITS_VERSION: int = 1
DIGITS_CLASSES: list[str] = [str(digit) for digit in range(10)]
DIGITS_SPLITS: dict[str, int] = {
    "train": 2000,
    "val": 400,
    "longtail_train": 2000,
}  # number of canvases

Box = tuple[int, int, int, int]  # XYWH

_SIDE = 128
_LONG_SIDE = (25, 51)  # asked of the ink's longer side; rounding makes it 24 to 52
_MAX_DIGITS = 6
_MAX_FRAGMENTS = 3
_NO_DIGIT = -1
_EMPTY_FRACTION = 0.03
_LONGTAIL_RATIO = 100.0
_TRAIN_FRACTION = 0.8
_MAX_COVERED = 0.15  # of the smaller of two boxes; keeps their IoU below 0.15 / 1.85 = 0.08
_MARGIN = 2  # soft edge around the tight box
_LUMA = np.array([0.114, 0.587, 0.299])  # of BGR


def get_digits_root() -> Path:
    """Folder of the generated splits: digits_v{version} in $FOCAL_DET_CACHE, by default in ~/.cache/focal_det."""
    cache = os.environ.get("FOCAL_DET_CACHE") or "~/.cache/focal_det"
    return Path(cache).expanduser() / f"digits_v{DIGITS_VERSION}"


def build_digits(split: str, root: str | Path | None = None) -> tuple[Path, Path]:
    """Make the files of a split, unless they exist.

    They are written to a temporary folder and renamed into place at the end: an interrupted build leaves nothing under the
    final name, and of two processes that build at the same time one result is kept.

    Args:
        split: "train"; "val", without any scan of the others; "longtail_train", whose class frequencies fall 100:1 from 0 to 9.
        root: folder that holds the splits; None is `get_digits_root()`.

    Returns:
        COCO json file and image folder.

    Raises:
        ValueError: unknown split.
        ImportError: scikit-learn is missing.
        FileExistsError: the folder of the split exists, but not all of its files.
    """
    if split not in DIGITS_SPLITS:
        raise ValueError(f"split must be one of {', '.join(DIGITS_SPLITS)}; got {split!r}")
    return _build(split, get_digits_root() if root is None else Path(root), DIGITS_SPLITS[split])


def _build(split: str, root: Path, num_images: int) -> tuple[Path, Path]:
    final = root / split
    if not _is_complete(final, num_images):
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{split}-", dir=root) as work:
            made = Path(work) / split
            _write_split(made, split, num_images)
            try:
                made.rename(final)
            except OSError:  # another process was faster
                if not _is_complete(final, num_images):
                    raise
    return final / "annotations.json", final / "images"


def _is_complete(folder: Path, num_images: int) -> bool:
    if not folder.exists():
        return False
    found = sum(1 for _ in (folder / "images").glob("*.png"))
    if found != num_images or not (folder / "annotations.json").is_file():
        raise FileExistsError(
            f"{folder} lacks annotations.json or some of its {num_images} images (has {found}): delete the folder"
        )
    return True


def _write_split(folder: Path, split: str, num_images: int) -> None:
    scans, probs = _load_scans(split), _get_class_probs(split)
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id in tqdm(
        range(1, num_images + 1),
        desc=f"digits_{split}: drawing {num_images} canvases",
        unit=" images",
    ):
        image, boxes, labels = _draw_canvas(
            np.random.default_rng(_get_seed(split, image_id)), scans, probs
        )
        name = f"{image_id:06d}.png"
        if not cv2.imwrite(str(folder / "images" / name), image):
            raise OSError(f"could not write {folder / 'images' / name}")
        images.append({"id": image_id, "file_name": name, "width": _SIDE, "height": _SIDE})
        for (x, y, w, h), label in zip(boxes, labels):
            ids = {"id": len(annotations) + 1, "image_id": image_id, "category_id": label + 1}
            annotations.append({**ids, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0})
    info: dict[str, Any] = {
        "description": f"focal_det digits, {split}",
        "version": str(DIGITS_VERSION),
    }
    info.update(
        seed=_get_seed(split), made_with=f"NumPy {np.__version__}, OpenCV {cv2.__version__}"
    )
    categories = [{"id": i, "name": name} for i, name in enumerate(DIGITS_CLASSES, start=1)]
    coco = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations.json").write_text(json.dumps(coco), encoding="utf-8")


def _get_seed(split: str, *index: int) -> list[int]:
    return [DIGITS_VERSION, list(DIGITS_SPLITS).index(split), *index]


def _load_scans(split: str) -> list[np.ndarray]:
    """Scans of a split: for each class (M, 8, 8) float32 in [0, 16], 16 is full ink."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "the digits data set needs scikit-learn: pip install scikit-learn"
        ) from error
    data = load_digits()
    rng = np.random.default_rng(DIGITS_VERSION)
    scans = []
    for label in range(len(DIGITS_CLASSES)):
        of_class = rng.permutation(data.images[data.target == label].astype(np.float32))
        num_train = round(_TRAIN_FRACTION * len(of_class))
        scans.append(of_class[num_train:] if split == "val" else of_class[:num_train])
    return scans


def _get_class_probs(split: str) -> np.ndarray:
    """(K,) probability of each class; sums to 1."""
    steps = np.linspace(0.0, 1.0, len(DIGITS_CLASSES))
    weights = _LONGTAIL_RATIO**-steps if split == "longtail_train" else np.ones_like(steps)
    return weights / weights.sum()


def _sample_labels(rng: np.random.Generator, probs: np.ndarray) -> list[int]:
    """0 to 6 classes in 0..K-1, the first draws of a canvas."""
    num_digits = 0 if rng.random() < _EMPTY_FRACTION else rng.integers(1, _MAX_DIGITS + 1)
    return rng.choice(len(probs), size=num_digits, p=probs).tolist()


def _draw_canvas(
    rng: np.random.Generator, scans: list[np.ndarray], probs: np.ndarray
) -> tuple[np.ndarray, list[Box], list[int]]:
    """One picture: (S, S, 3) uint8, its M tight boxes and their M labels in 0..K-1."""
    labels, num_fragments = _sample_labels(rng, probs), int(rng.integers(_MAX_FRAGMENTS + 1))
    image = _draw_background(rng).astype(np.float32)
    boxes: list[Box] = []
    kept: list[int] = []
    for label in labels + [_NO_DIGIT] * num_fragments:
        scan = _scramble(rng, scans) if label == _NO_DIGIT else rng.choice(scans[label])
        alpha = _render_alpha(
            scan,
            long_side=int(rng.integers(*_LONG_SIDE, endpoint=True)),
            angle=rng.uniform(-10.0, 10.0),
        )
        box = _find_place(rng, alpha, boxes)
        if box is not None:
            _paint(rng, image, alpha, box)
            boxes.append(box)
            kept.append(label)
    image += rng.uniform(2.0, 9.0) * rng.standard_normal((_SIDE, _SIDE, 1), dtype=np.float32)
    num_digits = len(kept) - kept.count(_NO_DIGIT)  # they come first
    return image.round().clip(0, 255).astype(np.uint8), boxes[:num_digits], kept[:num_digits]


def _scramble(rng: np.random.Generator, scans: list[np.ndarray]) -> np.ndarray:
    """(8, 8) scan that is no digit: quarters of four scans, each turned by a right angle."""
    corners = ((0, 0), (0, 4), (4, 0), (4, 4))
    quarters = [
        rng.choice(scans[rng.integers(len(scans))])[row : row + 4, col : col + 4]
        for row, col in corners
    ]
    turned = [np.rot90(quarter, rng.choice([1, 3])) for quarter in quarters]
    return np.block([turned[:2], turned[2:]])


def _draw_background(rng: np.random.Generator) -> np.ndarray:
    """(S, S, 3) uint8 smooth gradient with strokes, arcs and blobs blended in."""
    grid = rng.uniform(50, 205, 3) + rng.normal(0, 22, (3, 3, 3))
    image = (
        cv2.resize(grid, (_SIDE, _SIDE), interpolation=cv2.INTER_CUBIC)
        .clip(0, 255)
        .astype(np.uint8)
    )
    for _ in range(rng.integers(4, 13)):
        shape, layer = rng.choice(["stroke", "arc", "blob"], p=[0.45, 0.35, 0.2]), image.copy()
        thickness = -1 if shape == "blob" else int(rng.integers(1, 5))
        colour = tuple(rng.uniform(20, 235, 3).tolist())
        start, end = map(tuple, rng.integers(0, _SIDE, (2, 2)).tolist())
        if shape == "stroke":
            cv2.line(layer, start, end, colour, thickness, cv2.LINE_AA)
        else:
            axes, sweep = (
                tuple(rng.integers(5, 26, 2).tolist()),
                360 if shape == "blob" else rng.uniform(60, 300),
            )
            cv2.ellipse(
                layer, start, axes, rng.uniform(0, 360), 0, sweep, colour, thickness, cv2.LINE_AA
            )
        opacity = rng.uniform(0.2, 0.5) if shape == "blob" else rng.uniform(0.4, 0.9)
        image = cv2.addWeighted(layer, opacity, image, 1.0 - opacity, 0.0)
    return image


def _render_alpha(scan: np.ndarray, *, long_side: int, angle: float) -> np.ndarray:
    """Opacity in [0, 1] of an enlarged scan, (h + 4, w + 4) float32: the box of the ink (>= 0.5) and a margin of 2 pixels.

    Args:
        scan: (8, 8) float32 in [0, 16].
        long_side: of the ink in pixels; the result's max(h, w) differs by rounding.
        angle: counter-clockwise tilt in degrees.
    """
    large = cv2.resize(np.pad(scan, 2), (96, 96), interpolation=cv2.INTER_CUBIC)
    large = cv2.warpAffine(large, cv2.getRotationMatrix2D((47.5, 47.5), angle, 1.0), (96, 96))
    _, _, w, h = _get_tight_box(_soften(large))
    scale = long_side / max(w, h)
    ink = _soften(cv2.resize(large, None, fx=scale, fy=scale, interpolation=cv2.INTER_LINEAR))
    x, y, w, h = _get_tight_box(ink)
    return ink[y - _MARGIN : y + h + _MARGIN, x - _MARGIN : x + w + _MARGIN]


def _soften(values: np.ndarray) -> np.ndarray:
    return ((values - 4.0) / 6.0).clip(0.0, 1.0)


def _get_tight_box(alpha: np.ndarray) -> Box:
    rows, cols = (
        np.flatnonzero((alpha >= 0.5).any(axis=1)),
        np.flatnonzero((alpha >= 0.5).any(axis=0)),
    )
    return int(cols[0]), int(rows[0]), int(cols[-1] - cols[0] + 1), int(rows[-1] - rows[0] + 1)


def _find_place(rng: np.random.Generator, alpha: np.ndarray, taken: list[Box]) -> Box | None:
    """Box of the ink inside the canvas that hardly overlaps the taken ones; None when 40 tries found none."""
    h, w = (side - 2 * _MARGIN for side in alpha.shape)
    for _ in range(40):
        x, y = (int(rng.integers(_MARGIN, _SIDE - _MARGIN - side + 1)) for side in (w, h))
        if all(
            _get_intersection((x, y, w, h), other) <= _MAX_COVERED * min(w * h, other[2] * other[3])
            for other in taken
        ):
            return x, y, w, h
    return None


def _get_intersection(a: Box, b: Box) -> int:
    w, h = (min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    return max(w, 0) * max(h, 0)


def _paint(rng: np.random.Generator, image: np.ndarray, alpha: np.ndarray, box: Box) -> None:
    """Blend ink of a random colour, 45 to 130 lighter or darker than what is there, into image, (S, S, 3) float32, in place."""
    x, y, w, h = box
    patch = image[y - _MARGIN : y + h + _MARGIN, x - _MARGIN : x + w + _MARGIN]
    weight = alpha[..., None]
    luma = float((patch * weight).sum(axis=(0, 1)) @ _LUMA / weight.sum())
    contrast = rng.uniform(45, 130) * (1 if luma < rng.uniform(90, 166) else -1)
    tint = rng.uniform(-60, 60, 3)
    colour = (luma + contrast + tint - tint @ _LUMA).clip(0, 255)
    patch += weight * (colour - patch)
