"""A grid of pictures: ground truth beside detections."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import focal_det.host  # noqa: F401  (first: says how to get Detectron2)

import numpy as np
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog
from detectron2.data.detection_utils import read_image
from detectron2.structures import Boxes, Instances
from detectron2.utils.visualizer import ColorMode, Visualizer
from matplotlib import colormaps
from matplotlib.figure import Figure

_TILE = 420  # longer side of a picture in the grid, in pixels


def draw_detections(
    dataset_name: str, results_file: Path, out_file: Path, *, num_images: int = 12, score_thresh: float = 0.4
) -> None:
    """Draw pairs of pictures, ground truth on the left and detections on the right.

    Args:
        dataset_name: a registered data set with annotations.
        results_file: `coco_instances_results.json` of Detectron2's COCOEvaluator on that data set.
        out_file: picture to write; the suffix decides the format.
        num_images: how many images, taken at even distances.
        score_thresh: detections below this score are not drawn.

    Raises:
        ValueError: the file has detections of images that the data set does not have.
    """
    records = DatasetCatalog.get(dataset_name)
    detections = _read_results(results_file, score_thresh)
    unknown = set(detections) - {x["image_id"] for x in records}
    if unknown:
        raise ValueError(f"{results_file} has image id {min(unknown)!r}, which data set {dataset_name} has not")
    records = records[:: max(1, len(records) // num_images)][:num_images]
    num_rows = (len(records) + 1) // 2
    aspect = max(x["height"] / x["width"] for x in records)
    figure = Figure(figsize=(13, (3.25 * aspect + 0.25) * num_rows), layout="constrained")
    axes = figure.subplots(num_rows, 4, squeeze=False).reshape(-1, 2)
    for left, right in axes:
        left.axis("off")
        right.axis("off")
    for (left, right), record in zip(axes, records):
        truth, found = _draw_pair(record, detections[record["image_id"]], dataset_name)
        left.imshow(truth)
        right.imshow(found)
        left.set_title(f"{Path(record['file_name']).name}: ground truth", fontsize=9)
        right.set_title(f"detections, score ≥ {score_thresh}", fontsize=9)
    figure.savefig(out_file, dpi=130)


def _read_results(results_file: Path, score_thresh: float) -> dict[Any, list[dict[str, Any]]]:
    """Detections by image id."""
    by_image = defaultdict(list)
    for detection in json.loads(results_file.read_text()):
        if detection["score"] >= score_thresh:
            by_image[detection["image_id"]].append(detection)
    return by_image


def _draw_pair(record: dict[str, Any], detections: list[dict[str, Any]], dataset_name: str) -> tuple[np.ndarray, np.ndarray]:
    """Two RGB pictures of one image."""
    image, metadata = read_image(record["file_name"], "RGB"), MetadataCatalog.get(dataset_name)
    instances = _to_instances(detections, image.shape[:2], metadata)
    truth, found = (make_visualizer(image, metadata.thing_classes, _TILE / max(image.shape[:2])) for _ in range(2))
    return truth.draw_dataset_dict(record).get_image(), found.draw_instance_predictions(instances).get_image()


def make_visualizer(image: np.ndarray, class_names: Sequence[str], scale: float = 1.0) -> Visualizer:
    """Detectron2's Visualizer of an RGB image, with one colour per class, the same in all pictures."""
    colors = [tuple(round(255 * x) for x in colormaps["tab10"](i % 10)[:3]) for i in range(len(class_names))]
    style = Metadata(thing_classes=list(class_names), thing_colors=colors)
    return Visualizer(image, style, scale=scale, instance_mode=ColorMode.SEGMENTATION)


def _to_instances(detections: list[dict[str, Any]], size: tuple[int, int], metadata: Any) -> Instances:
    """COCO results (XYWH, ids of the json) as Detectron2's Instances."""
    class_of_id = metadata.get("thing_dataset_id_to_contiguous_id")
    boxes = np.array([x["bbox"] for x in detections], dtype=np.float32).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    ids = [x["category_id"] for x in detections]
    instances = Instances(size, pred_boxes=Boxes(boxes), scores=np.array([x["score"] for x in detections]))
    instances.pred_classes = np.array([class_of_id[i] if class_of_id else i for i in ids], dtype=np.int64)
    return instances
