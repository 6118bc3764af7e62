"""Images with boxes: ground truth, and detections beside it, as figures."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from detectron2.utils.visualizer import Visualizer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from focal_det.data.catalog import sample_evenly
from focal_det.messages import MAX_NAME, to_line

from .style import get_class_color

_NUM_GROUND_TRUTH = 9  # images, in three columns
_MAX_BOXES = 200  # of an image in the ground-truth figure; each takes milliseconds to draw
_TILE = 420  # longer side of an image in the grid, in pixels

# A detection of Detectron2's COCOEvaluator: "image_id", "category_id", "bbox" (XYWH), "score".
Detection = dict[str, Any]


def make_detections_figure(
    dataset_name: str, results_file: Path, *, num_images: int = 12, score_thresh: float = 0.4
) -> Figure:
    """Pairs of images, ground truth on the left and detections on the right.

    If no detection of an image reaches `score_thresh`, the image's title gives the best score, or
    says that there are no detections. The figure's title does the same for the whole data set.

    Args:
        dataset_name: a registered data set with annotations.
        results_file: `coco_instances_results.json` of Detectron2's COCOEvaluator on that data set.
        num_images: how many images, evenly spaced in the data set.
        score_thresh: detections below this score are not drawn.

    Raises:
        ValueError: the file is not JSON, or has detections of images outside the data set.
    """
    records = DatasetCatalog.get(dataset_name)
    detections = _read_results(results_file, records, dataset_name)
    records = sample_evenly(records, num_images)
    num_rows = (len(records) + 1) // 2
    height = (3.25 * _get_aspect(records) + 0.25) * num_rows
    figure = Figure(figsize=(13, height), dpi=130, layout="constrained")
    pairs = figure.subplots(num_rows, 4, squeeze=False).reshape(-1, 2)
    for axes in pairs.flat:
        axes.axis("off")
    metadata = MetadataCatalog.get(dataset_name)
    for (left, right), record in zip(pairs, records):
        _draw_pair(left, right, record, detections[record["image_id"]], score_thresh, metadata)
    scores = [x["score"] for of_image in detections.values() for x in of_image]
    absence = describe_absence(scores, score_thresh)
    if absence:
        figure.suptitle(absence)
    return figure


def make_comparison_figure(
    dataset_name: str,
    results: Sequence[tuple[str, Path]],
    *,
    num_images: int = 4,
    score_thresh: float = 0.4,
) -> Figure:
    """A row per image: ground truth, then the detections of each run.

    Args:
        dataset_name: a registered data set with annotations.
        results: of each run, the title of its column and its `coco_instances_results.json`.
        num_images: how many images with objects, evenly spaced in the data set.
        score_thresh: detections below this score are not drawn.

    Raises:
        ValueError: as for `make_detections_figure`.
    """
    records = DatasetCatalog.get(dataset_name)
    columns = [(title, _read_results(file, records, dataset_name)) for title, file in results]
    # An image without objects shows only false positives.
    records = sample_evenly([x for x in records if x["annotations"]] or records, num_images)
    height = (4.3 * _get_aspect(records) + 0.25) * len(records)
    num_columns = 1 + len(columns)
    figure = Figure(figsize=(4.3 * num_columns, height), dpi=110, layout="constrained")
    grid = figure.subplots(len(records), num_columns, squeeze=False)
    metadata = MetadataCatalog.get(dataset_name)
    for panels, record in zip(grid, records):
        image = _show_objects(panels[0], record, metadata)
        for axes, (title, detections) in zip(panels[1:], columns):
            of_image = detections[record["image_id"]]
            absence = _show_detections(axes, image, of_image, score_thresh, metadata)
            axes.set_title(": ".join(filter(None, (title, absence))), fontsize=9)
    for axes in grid.flat:
        axes.axis("off")
    return figure


def describe_absence(scores: Sequence[float], score_thresh: float) -> str:
    """Text in place of detections if no score reaches the threshold; empty if one does."""
    best = max(scores, default=None)
    if best is None:
        return "no detections at any score"
    if best >= score_thresh:
        return ""
    return f"no detection with score >= {score_thresh:g}; best score {best:.3g}"


def make_ground_truth_figure(
    records: Sequence[dict[str, Any]], class_names: Sequence[str]
) -> Figure:
    """Nine images with their boxes, to see mistakes that affect a whole data set at a glance.

    Args:
        records: dataset dicts; of those with objects, nine are drawn, evenly spaced.
        class_names: K names.
    """
    records = sample_evenly([x for x in records if x.get("annotations")], _NUM_GROUND_TRUTH)
    num_rows = -(-len(records) // 3)
    height = (4.3 * _get_aspect(records) + 0.25) * num_rows
    figure = Figure(figsize=(13, height), dpi=110, layout="constrained")
    panels = figure.subplots(num_rows, 3, squeeze=False)
    for axes in panels.flat:
        axes.axis("off")
    for axes, record in zip(panels.flat, records):
        _draw_record(axes, record, class_names)
    return figure


def draw_boxes(
    image: np.ndarray,
    boxes: Any,
    classes: Sequence[int],
    *,
    class_names: Sequence[str],
    scores: Optional[Sequence[float]] = None,
    scale: float = 1.0,
    caption: str = "",
) -> np.ndarray:
    """Draw labelled boxes with Detectron2's Visualizer; each class has its colour.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (M, 4) XYXY in absolute pixels.
        classes: (M,) indices into `class_names`.
        scores: (M,) in [0, 1], added to the labels.
        scale: size of the picture relative to the image.
        caption: text at the upper edge; "; " breaks the line.

    Returns:
        (scale H, scale W, 3) uint8 RGB.
    """
    # Control characters have no glyph, and a long name would hide the image.
    labels = [to_line(class_names[int(i)], MAX_NAME) for i in classes]
    if scores is not None:
        labels = [f"{label} {100 * float(score):.0f}%" for label, score in zip(labels, scores)]
    visualizer = Visualizer(image, Metadata(), scale=scale)
    if caption:
        middle = (image.shape[1] / 2, 0)
        visualizer.draw_text(caption.replace("; ", "\n"), middle, color="white")
    colors = [get_class_color(int(i)) for i in classes]
    return visualizer.overlay_instances(
        boxes=np.asarray(boxes), labels=labels, assigned_colors=colors
    ).get_image()


def _get_aspect(records: Sequence[dict[str, Any]]) -> float:
    """The largest height-to-width ratio of the images, which decides the height of the rows."""
    return max(x["height"] / x["width"] for x in records)


def _read_results(
    results_file: Path, records: Sequence[dict[str, Any]], dataset_name: str
) -> dict[Any, list[Detection]]:
    """Detections by image id, of images in the records of the data set alone."""
    try:
        detections = json.loads(results_file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{results_file} is not JSON, or is cut off: {error}") from None
    by_image = defaultdict(list)
    for detection in detections:
        by_image[detection["image_id"]].append(detection)
    # Results of another data set would be drawn beside the wrong images.
    unknown = set(by_image) - {x["image_id"] for x in records}
    if unknown:
        raise ValueError(
            f"{results_file} has image id {min(unknown)!r}, which is not in data set {dataset_name}"
        )
    return by_image


def _draw_pair(
    left: Axes,
    right: Axes,
    record: dict[str, Any],
    detections: Sequence[Detection],
    score_thresh: float,
    metadata: Metadata,
) -> None:
    """Ground truth and detections of one image."""
    image = _show_objects(left, record, metadata)
    absence = _show_detections(right, image, detections, score_thresh, metadata)
    right.set_title(absence or f"detections, score >= {score_thresh:g}", fontsize=9)


def _show_objects(axes: Axes, record: dict[str, Any], metadata: Metadata) -> np.ndarray:
    """The image with its ground truth; returns the image, in RGB."""
    image = read_image(record["file_name"], "RGB")
    axes.imshow(_draw_objects(image, record, metadata.thing_classes))
    axes.set_title(f"{_get_name(record)}: ground truth", fontsize=9)
    return image


def _show_detections(
    axes: Axes,
    image: np.ndarray,
    detections: Sequence[Detection],
    score_thresh: float,
    metadata: Metadata,
) -> str:
    """The image with its detections; returns why there are none, see `describe_absence`."""
    drawn = [x for x in detections if x["score"] >= score_thresh]
    axes.imshow(_draw_detections(image, drawn, metadata))
    return describe_absence([x["score"] for x in detections], score_thresh)


def _draw_record(axes: Axes, record: dict[str, Any], class_names: Sequence[str]) -> None:
    """One image with its boxes, or a title that says why not."""
    title = _get_name(record)
    objects = record["annotations"]
    shown = sample_evenly(objects, _MAX_BOXES)
    if len(shown) < len(objects):
        title += f": {len(shown)} of {len(objects)} boxes"
    image = _try_to_read(record["file_name"])
    if image is None:
        title += ": cannot be read"
    else:
        axes.imshow(_draw_objects(image, {**record, "annotations": shown}, class_names))
    axes.set_title(title, fontsize=9)


def _get_name(record: dict[str, Any]) -> str:
    """The file's name, safe to show."""
    return to_line(Path(record["file_name"]).name, MAX_NAME)


def _try_to_read(file: str) -> Optional[np.ndarray]:
    """An image in RGB; None if it cannot be decoded."""
    try:
        return read_image(file, "RGB")
    except Exception:  # Pillow raises errors of many kinds
        return None


def _draw_objects(
    image: np.ndarray, record: dict[str, Any], class_names: Sequence[str]
) -> np.ndarray:
    """The image with its ground truth."""
    objects = record["annotations"]
    boxes = [BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in objects]
    return draw_boxes(
        image,
        np.reshape(boxes, (-1, 4)),
        [x["category_id"] for x in objects],
        class_names=class_names,
        scale=_get_scale(image),
    )


def _draw_detections(
    image: np.ndarray, detections: Sequence[Detection], metadata: Metadata
) -> np.ndarray:
    """The image with its detections; their category ids are those of the annotation file."""
    boxes = np.array([x["bbox"] for x in detections], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    classes = [x["category_id"] for x in detections]
    # A COCO file may number its categories with gaps; K class ids have none.
    class_of_id = metadata.get("thing_dataset_id_to_contiguous_id")
    if class_of_id:
        classes = [class_of_id[i] for i in classes]
    return draw_boxes(
        image,
        boxes,
        classes,
        class_names=metadata.thing_classes,
        scores=[x["score"] for x in detections],
        scale=_get_scale(image),
    )


def _get_scale(image: np.ndarray) -> float:
    return _TILE / max(image.shape[:2])
