"""A generated detection data set: scanned handwritten digits on cluttered canvases.

The objects are scikit-learn's 1797 real 8x8 scans, enlarged, tilted and inked. The background is a
colour gradient with strokes, arcs, blobs and scrambled scans, which look like digits but are not.
Nothing is downloaded. Sparse splits have at most three digits on large canvases, whose clutter
grows with their area, so that nearly all anchors are background.

Every canvas has its own random generator, seeded by (version, split, image id), so canvases do not
depend on their order. The bytes are the same wherever NumPy, OpenCV and scikit-learn have the same
versions.

Shapes: S canvas side in pixels, K classes, M digits on a canvas; images are BGR, boxes XYWH in
whole pixels.
"""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Optional, Union

import cv2
import numpy as np
from tqdm import tqdm

from focal_det.files import write_text

DIGITS_VERSION: int = 1
DIGITS_CLASSES: list[str] = [str(digit) for digit in range(10)]
ONE_CLASS: list[str] = ["digit"]
# Files in the folder of a split.
ANNOTATIONS = "annotations.json"
ONE_CLASS_ANNOTATIONS = "one_class.json"

Box = tuple[int, int, int, int]  # XYWH

_TILE = 128  # side in pixels of the smallest canvas, and the reach of a stroke
_NO_DIGIT = -1
_LONGTAIL_RATIO = 100.0
_TRAIN_FRACTION = 0.8
# Largest covered share of the smaller of two boxes; keeps their IoU below 0.15 / 1.85 = 0.08.
_MAX_COVERED = 0.15
_MAX_TRIES = 40
# The ink's soft edge reaches beyond its tight box.
_MARGIN = 2
_LUMA = np.array([0.114, 0.587, 0.299])  # of BGR


@dataclass(frozen=True)
class DigitsSplit:
    """What the canvases of a split have.

    Attributes:
        num_images: canvases.
        is_val: whether it uses the scans that no training split uses.
        is_longtail: whether class frequencies fall 100:1 from 0 to 9; else they are equal.
        side: of a canvas in pixels, a multiple of 128.
        long_side: range of the ink's longer side in pixels; rounding can add 1 at either end.
        max_digits: a canvas that is not empty has 1 to this many.
        empty_fraction: share of canvases without a digit.
    """

    num_images: int
    is_val: bool = False
    is_longtail: bool = False
    side: int = _TILE
    long_side: tuple[int, int] = (25, 51)
    max_digits: int = 6
    empty_fraction: float = 0.03

    @property
    def num_tiles(self) -> int:
        """The area of a canvas, in areas of the smallest canvas."""
        return (self.side // _TILE) ** 2


def _make_splits() -> dict[str, DigitsSplit]:
    splits = {
        "train": DigitsSplit(2000),
        "val": DigitsSplit(400, is_val=True),
        "longtail_train": DigitsSplit(2000, is_longtail=True),
    }

    def add_sparse(name: str, side: int, **changes: Any) -> None:
        train = DigitsSplit(1000, side=side, max_digits=3, empty_fraction=0.1)
        splits[f"sparse_{side}{name}_train"] = replace(train, **changes)
        splits[f"sparse_{side}{name}_val"] = replace(train, num_images=200, is_val=True, **changes)

    for side in (256, 512, 768):
        add_sparse("", side)
    add_sparse("_small", 512, long_side=(12, 24))
    splits["sparse_512_longtail_train"] = replace(splits["sparse_512_train"], is_longtail=True)
    add_sparse("_single", 512, max_digits=1)
    add_sparse("_single", 768, max_digits=1)
    return splits


# Add new splits at the end: the position of a split is part of its seed.
DIGITS_SPLITS: dict[str, DigitsSplit] = _make_splits()


def get_digits_root() -> Path:
    """Folder of the generated splits, in $FOCAL_DET_CACHE or ~/.cache/focal_det."""
    cache = os.environ.get("FOCAL_DET_CACHE") or "~/.cache/focal_det"
    return Path(cache).expanduser() / f"digits_v{DIGITS_VERSION}"


def build_digits(split: str, root: Optional[Union[str, Path]] = None) -> tuple[Path, Path]:
    """Make the files of a split, unless they exist.

    They are written to a temporary folder, which is renamed at the end: an interrupted build leaves
    nothing under the final name, and two processes that build at the same time keep one result.

    Args:
        split: a name in `DIGITS_SPLITS`.
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
    folder = get_digits_root() if root is None else Path(root)
    return _build(split, folder, DIGITS_SPLITS[split].num_images)


def _build(split: str, root: Path, num_images: int) -> tuple[Path, Path]:
    final = root / split
    paths = (final / ANNOTATIONS, final / "images")
    if _is_complete(final, num_images):
        _write_one_class(final)
        return paths
    root.mkdir(parents=True, exist_ok=True)
    # Beside the final folder: a rename is atomic only within one file system.
    with tempfile.TemporaryDirectory(prefix=f".{split}-", dir=root) as work:
        made = Path(work) / split
        _write_split(made, split, num_images)
        _write_one_class(made)
        try:
            made.rename(final)
        except OSError:
            # It is no error if another process was faster.
            if not _is_complete(final, num_images):
                raise
    return paths


def _is_complete(folder: Path, num_images: int) -> bool:
    if not folder.exists():
        return False
    found = sum(1 for _ in (folder / "images").glob("*.png"))
    if found == num_images and (folder / ANNOTATIONS).is_file():
        return True
    missing = f"{ANNOTATIONS} or some of {num_images} images (has {found})"
    raise FileExistsError(f"{folder} lacks {missing}: delete the folder")


def _write_split(folder: Path, split: str, num_images: int) -> None:
    """Draw the images of a split into `folder`, and write its COCO json."""
    scans = _load_scans(split)
    probs = _get_class_probs(split)
    (folder / "images").mkdir(parents=True)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    title = f"digits_{split}: drawing {num_images} canvases"
    for image_id in tqdm(range(1, num_images + 1), desc=title, unit=" images"):
        rng = np.random.default_rng(_get_seed(split, image_id))
        image, boxes, labels = _draw_canvas(rng, scans, probs, DIGITS_SPLITS[split])
        file = folder / "images" / f"{image_id:06d}.png"
        if not cv2.imwrite(str(file), image):
            raise OSError(f"could not write {file}")
        height, width, _ = image.shape
        images.append({"id": image_id, "file_name": file.name, "width": width, "height": height})
        for (x, y, w, h), label in zip(boxes, labels):
            ids = {"id": len(annotations) + 1, "image_id": image_id, "category_id": label + 1}
            annotations.append({**ids, "bbox": [x, y, w, h], "area": w * h, "iscrowd": 0})
    coco = {
        "info": _describe_split(split),
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": x} for i, x in enumerate(DIGITS_CLASSES, start=1)],
    }
    (folder / ANNOTATIONS).write_text(json.dumps(coco), encoding="utf-8")


def _write_one_class(folder: Path) -> None:
    """Write the json in which all digits are of one class, unless it exists."""
    file = folder / ONE_CLASS_ANNOTATIONS
    if file.is_file():
        return
    coco = json.loads((folder / ANNOTATIONS).read_text(encoding="utf-8"))
    coco["annotations"] = [{**x, "category_id": 1} for x in coco["annotations"]]
    coco["categories"] = [{"id": 1, "name": ONE_CLASS[0]}]
    write_text(file, json.dumps(coco))


def _describe_split(split: str) -> dict[str, Any]:
    """The "info" of the COCO json: what the bytes of a split depend on."""
    return {
        "description": f"focal_det digits, {split}",
        "version": str(DIGITS_VERSION),
        "seed": _get_seed(split),
        "made_with": f"NumPy {np.__version__}, OpenCV {cv2.__version__}",
    }


def _get_seed(split: str, *index: int) -> list[int]:
    return [DIGITS_VERSION, list(DIGITS_SPLITS).index(split), *index]


def _load_scans(split: str) -> list[np.ndarray]:
    """Load the scans of a split, per class (number, 8, 8) float32 in [0, 16]; 16 is full ink."""
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
        # No scan of a val split is in a training split: a model cannot have seen it.
        part = slice(num_train, None) if DIGITS_SPLITS[split].is_val else slice(num_train)
        scans.append(of_class[part])
    return scans


def _get_class_probs(split: str) -> np.ndarray:
    """(K,) probability of each class; sums to 1."""
    weights = np.ones(len(DIGITS_CLASSES))
    if DIGITS_SPLITS[split].is_longtail:
        weights = _LONGTAIL_RATIO ** -np.linspace(0.0, 1.0, len(DIGITS_CLASSES))
    return weights / weights.sum()


def _sample_labels(rng: np.random.Generator, probs: np.ndarray, split: DigitsSplit) -> list[int]:
    """Sample the classes of a canvas, in 0..K-1; these are the first draws from its `rng`."""
    num_digits = 0
    if rng.random() >= split.empty_fraction:
        num_digits = int(rng.integers(1, split.max_digits + 1))
    return rng.choice(len(probs), size=num_digits, p=probs).tolist()


def _draw_canvas(
    rng: np.random.Generator, scans: list[np.ndarray], probs: np.ndarray, split: DigitsSplit
) -> tuple[np.ndarray, list[Box], list[int]]:
    """Draw one canvas.

    The order of the draws from `rng` is part of the data set: another order gives other images.

    Returns:
        (S, S, 3) uint8 image, its M tight boxes and their M labels in 0..K-1.
    """
    labels = _sample_labels(rng, probs, split)
    num_fragments = int(rng.integers(3 * split.num_tiles + 1))
    image = _draw_background(rng, split).astype(np.float32)
    boxes: list[Box] = []
    kept: list[int] = []
    for label in labels + [_NO_DIGIT] * num_fragments:
        if label == _NO_DIGIT:
            scan = _scramble(rng, scans)
        else:
            scan = rng.choice(scans[label])
        long_side = int(rng.integers(*split.long_side, endpoint=True))
        alpha = _render_alpha(scan, long_side=long_side, angle=rng.uniform(-10.0, 10.0))
        box = _find_place(rng, alpha, boxes, split.side)
        if box is not None:
            _paint(rng, image, alpha, box)
            boxes.append(box)
            kept.append(label)
    noise = rng.uniform(2.0, 9.0)
    image += noise * rng.standard_normal((split.side, split.side, 1), dtype=np.float32)
    # Digits were placed before fragments, so theirs are the first boxes.
    num_digits = len(kept) - kept.count(_NO_DIGIT)
    return image.round().clip(0, 255).astype(np.uint8), boxes[:num_digits], kept[:num_digits]


def _scramble(rng: np.random.Generator, scans: list[np.ndarray]) -> np.ndarray:
    """(8, 8) scan of ink without a digit: quarters of four scans, turned by right angles."""
    quarters = []
    for row, col in ((0, 0), (0, 4), (4, 0), (4, 4)):
        scan = rng.choice(scans[rng.integers(len(scans))])
        quarters.append(scan[row : row + 4, col : col + 4])
    turned = [np.rot90(quarter, rng.choice([1, 3])) for quarter in quarters]
    return np.block([turned[:2], turned[2:]])


def _draw_background(rng: np.random.Generator, split: DigitsSplit) -> np.ndarray:
    """(S, S, 3) uint8 smooth gradient with strokes, arcs and blobs blended in."""
    grid = rng.uniform(50, 205, 3) + rng.normal(0, 22, (3, 3, 3))
    gradient = cv2.resize(grid, (split.side, split.side), interpolation=cv2.INTER_CUBIC)
    image: np.ndarray = gradient.clip(0, 255).astype(np.uint8)
    for _ in range(rng.integers(4 * split.num_tiles, 12 * split.num_tiles + 1)):
        shape = rng.choice(["stroke", "arc", "blob"], p=[0.45, 0.35, 0.2])
        x = y = 0
        if split.side > _TILE:
            x, y = rng.integers(0, split.side - _TILE + 1, 2).tolist()
        # A view: only one tile of a large canvas is copied and blended.
        tile = image[y : y + _TILE, x : x + _TILE]
        layer = tile.copy()
        _draw_shape(rng, layer, shape)
        # A blob is filled: if it were as opaque as a line, it would hide what is below it.
        opacity = rng.uniform(0.2, 0.5) if shape == "blob" else rng.uniform(0.4, 0.9)
        tile[:] = cv2.addWeighted(layer, opacity, tile, 1.0 - opacity, 0.0)
    return image


def _draw_shape(rng: np.random.Generator, layer: np.ndarray, shape: str) -> None:
    """Draw a "stroke", "arc" or "blob" of a random form into layer, a tile (uint8), in place."""
    filled = -1  # OpenCV's thickness
    thickness = filled if shape == "blob" else int(rng.integers(1, 5))
    colour = tuple(rng.uniform(20, 235, 3).tolist())
    start, end = map(tuple, rng.integers(0, _TILE, (2, 2)).tolist())
    if shape == "stroke":
        cv2.line(layer, start, end, colour, thickness, cv2.LINE_AA)
        return
    axes = tuple(rng.integers(5, 26, 2).tolist())
    sweep = 360 if shape == "blob" else rng.uniform(60, 300)
    angle = rng.uniform(0, 360)
    cv2.ellipse(layer, start, axes, angle, 0, sweep, colour, thickness, cv2.LINE_AA)


def _render_alpha(scan: np.ndarray, *, long_side: int, angle: float) -> np.ndarray:
    """Opacity of an enlarged and tilted scan.

    Args:
        scan: (8, 8) float32 in [0, 16].
        long_side: longer side of the ink in pixels; max(h, w) of the result differs by rounding.
        angle: counter-clockwise tilt in degrees.

    Returns:
        (h + 4, w + 4) float32 in [0, 1]: the box of the ink (>= 0.5) and a margin of 2 pixels.
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
    is_ink = alpha >= 0.5
    rows = np.flatnonzero(is_ink.any(axis=1))
    cols = np.flatnonzero(is_ink.any(axis=0))
    return int(cols[0]), int(rows[0]), int(cols[-1] - cols[0] + 1), int(rows[-1] - rows[0] + 1)


def _find_place(
    rng: np.random.Generator, alpha: np.ndarray, taken: list[Box], canvas_side: int
) -> Optional[Box]:
    """Find a box on the canvas that hardly overlaps the `taken` ones; None if no try succeeds."""
    h, w = (side - 2 * _MARGIN for side in alpha.shape)
    for _ in range(_MAX_TRIES):
        x, y = (int(rng.integers(_MARGIN, canvas_side - _MARGIN - side + 1)) for side in (w, h))
        box = (x, y, w, h)
        if not any(_overlaps(box, other) for other in taken):
            return box
    return None


def _overlaps(a: Box, b: Box) -> bool:
    """Whether two boxes share more than _MAX_COVERED of the smaller one."""
    w, h = (min(a[i] + a[i + 2], b[i] + b[i + 2]) - max(a[i], b[i]) for i in (0, 1))
    intersection = max(w, 0) * max(h, 0)
    return intersection > _MAX_COVERED * min(a[2] * a[3], b[2] * b[3])


def _paint(rng: np.random.Generator, image: np.ndarray, alpha: np.ndarray, box: Box) -> None:
    """Blend ink of a random colour into image, (S, S, 3) float32, in place.

    The ink is 45 to 130 levels lighter or darker than the background there, so that it can be seen.
    """
    x, y, w, h = box
    patch = image[y - _MARGIN : y + h + _MARGIN, x - _MARGIN : x + w + _MARGIN]
    weight = alpha[..., None]
    luma = float((patch * weight).sum(axis=(0, 1)) @ _LUMA / weight.sum())
    contrast = rng.uniform(45, 130)
    if luma >= rng.uniform(90, 166):
        contrast = -contrast
    tint = rng.uniform(-60, 60, 3)
    # The luma of the tint is subtracted, so that the tint changes the colour alone.
    colour = (luma + contrast + tint - tint @ _LUMA).clip(0, 255)
    patch += weight * (colour - patch)
