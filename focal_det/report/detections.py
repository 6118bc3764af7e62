"""A grid of pictures: ground truth beside detections."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.visualizer import Visualizer
from matplotlib import colormaps
from matplotlib.figure import Figure

from focal_det.data.catalog import sample_evenly
from focal_det.messages import MAX_NAME, to_line

_MAX_BOXES = 200  # of ground truth in a picture; each takes milliseconds
_TILE = 420  # longer side of a picture in the grid, in pixels


def draw_detections(
    dataset_name: str,
    results_file: Path,
    out_file: Path,
    *,
    num_images: int = 12,
    score_thresh: float = 0.4,
) -> Figure:
    """Draw pairs of pictures, ground truth on the left and detections on the right.

    A picture without detections has the best score of its image in its title; if there are none
    in the whole data set, the figure's title says so.

    Args:
        dataset_name: a registered data set with annotations.
        results_file: `coco_instances_results.json` of Detectron2's COCOEvaluator on that data set.
        out_file: picture to write; the suffix decides the format.
        num_images: how many images, taken at even distances.
        score_thresh: detections below this score are not drawn.

    Returns:
        The figure that was written.

    Raises:
        ValueError: the file has detections of images that the data set does not have.
    """
    records = DatasetCatalog.get(dataset_name)
    detections = _read_results(results_file)
    unknown = set(detections) - {x["image_id"] for x in records}
    if unknown:
        raise ValueError(
            f"{results_file} has image id {min(unknown)!r}, which data set {dataset_name} has not"
        )
    records = sample_evenly(records, num_images)
    num_rows = (len(records) + 1) // 2
    aspect = max(x["height"] / x["width"] for x in records)
    figure = Figure(figsize=(13, (3.25 * aspect + 0.25) * num_rows), layout="constrained")
    axes = figure.subplots(num_rows, 4, squeeze=False).reshape(-1, 2)
    for left, right in axes:
        left.axis("off")
        right.axis("off")
    for (left, right), record in zip(axes, records):
        of_image = detections[record["image_id"]]
        drawn = [x for x in of_image if x["score"] >= score_thresh]
        truth, found = _draw_pair(record, drawn, dataset_name)
        left.imshow(truth)
        right.imshow(found)
        name = to_line(Path(record["file_name"]).name, MAX_NAME)
        left.set_title(f"{name}: ground truth", fontsize=9)
        absence = describe_absence([x["score"] for x in of_image], score_thresh)
        right.set_title(absence or f"detections, score >= {score_thresh:g}", fontsize=9)
    scores = [x["score"] for of_image in detections.values() for x in of_image]
    absence = describe_absence(scores, score_thresh)
    if absence:
        figure.suptitle(absence)
    figure.savefig(out_file, dpi=130)
    return figure


def describe_absence(scores: Sequence[float], score_thresh: float) -> str:
    """Text in place of detections if no score reaches the threshold; empty if one does."""
    best = max(scores, default=None)
    if best is None:
        return "no detections at any score"
    if best >= score_thresh:
        return ""
    return f"no detection with score >= {score_thresh:g}; best score {best:.3g}"


def draw_ground_truth(
    records: Sequence[dict[str, Any]], class_names: Sequence[str], out_file: Path
) -> None:
    """Draw nine images with their boxes, where mistakes of a whole data set are seen at once.

    Args:
        records: dataset dicts; those with objects are drawn, at even distances, if they can be read.
        out_file: picture to write; the suffix decides the format.
    """
    records = sample_evenly([x for x in records if x.get("annotations")], 9)
    images = [_try_to_read(x["file_name"]) for x in records]
    num_rows = -(-len(records) // 3)
    aspect = max(x["height"] / x["width"] for x in records)
    figure = Figure(figsize=(13, (4.3 * aspect + 0.25) * num_rows), layout="constrained")
    for axes in figure.subplots(num_rows, 3, squeeze=False).flat:
        axes.axis("off")
    for axes, record, image in zip(figure.axes, records, images):
        title, objects = to_line(Path(record["file_name"]).name, MAX_NAME), record["annotations"]
        shown = sample_evenly(objects, _MAX_BOXES)
        if len(shown) < len(objects):
            title += f": {len(shown)} of {len(objects)} boxes"
        if image is None:
            title += ": cannot be read"
        else:
            axes.imshow(_draw_objects(image, {**record, "annotations": shown}, class_names))
        axes.set_title(title, fontsize=9)
    figure.savefig(out_file, dpi=110)


def _try_to_read(file: str) -> Optional[np.ndarray]:
    try:
        return read_image(file, "RGB")
    except Exception:  # Pillow has many ways to say it
        return None


def _draw_objects(
    image: np.ndarray, record: dict[str, Any], class_names: Sequence[str]
) -> np.ndarray:
    """The image with its ground truth."""
    objects = record["annotations"]
    boxes = [BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in objects]
    classes, scale = [x["category_id"] for x in objects], _TILE / max(image.shape[:2])
    return draw_boxes(
        image, np.reshape(boxes, (-1, 4)), classes, class_names=class_names, scale=scale
    )


def _read_results(results_file: Path) -> dict[Any, list[dict[str, Any]]]:
    """Detections by image id."""
    by_image = defaultdict(list)
    for detection in json.loads(results_file.read_text()):
        by_image[detection["image_id"]].append(detection)
    return by_image


def _draw_pair(
    record: dict[str, Any], detections: list[dict[str, Any]], dataset_name: str
) -> tuple[np.ndarray, np.ndarray]:
    """Two RGB pictures of one image."""
    image, metadata = read_image(record["file_name"], "RGB"), MetadataCatalog.get(dataset_name)
    found, truth = (
        _to_instances(detections, image.shape[:2], metadata),
        _draw_objects(image, record, metadata.thing_classes),
    )
    names = {"class_names": metadata.thing_classes, "scale": _TILE / max(image.shape[:2])}
    return truth, draw_boxes(
        image, found.pred_boxes.tensor, found.pred_classes, scores=found.scores, **names
    )


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
    """Draw labelled boxes with Detectron2's Visualizer, each class in a colour that is the same in all pictures.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (M, 4) XYXY in absolute pixels.
        classes: (M,) indices into `class_names`.
        scores: (M,) in [0, 1], added to the labels.
        scale: of the picture against the image.
        caption: text at the upper edge.

    Returns:
        (scale H, scale W, 3) uint8 RGB.
    """
    labels = [to_line(class_names[int(i)], MAX_NAME) for i in classes]
    if scores is not None:
        labels = [f"{label} {100 * float(score):.0f}%" for label, score in zip(labels, scores)]
    colors = [colormaps["tab10"](int(i) % 10)[:3] for i in classes]
    visualizer = Visualizer(image, Metadata(), scale=scale)
    if caption:
        middle = (image.shape[1] / 2, 0)
        visualizer.draw_text(caption.replace("; ", "\n"), middle, color="white")
    return visualizer.overlay_instances(
        boxes=np.asarray(boxes), labels=labels, assigned_colors=colors
    ).get_image()


def _to_instances(
    detections: list[dict[str, Any]], size: tuple[int, int], metadata: Any
) -> Instances:
    """COCO results (XYWH, ids of the json) as Detectron2's Instances."""
    class_of_id = metadata.get("thing_dataset_id_to_contiguous_id")
    boxes = np.array([x["bbox"] for x in detections], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    ids = [x["category_id"] for x in detections]
    instances = Instances(
        size, pred_boxes=Boxes(boxes), scores=np.array([x["score"] for x in detections])
    )
    instances.pred_classes = np.array(
        [class_of_id[i] if class_of_id else i for i in ids], dtype=np.int64
    )
    return instances
