"""How data sets are evaluated: an evaluator for each, and the annotations that Detectron2 caches for it."""

import json
import logging
from pathlib import Path
from typing import Any, Optional

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
)
from detectron2.utils import comm

from focal_det.host import LOGGER_NAME
from focal_det.messages import describe_unknown


def find_stale_cache(name: str, folder: Path) -> Optional[Path]:
    """The json that Detectron2 would evaluate data set `name` with, if it has other annotations than the data set has now.

    Detectron2 takes whatever lies in `folder`, the "inference" folder of OUTPUT_DIR, and so evaluates on old annotations.
    """
    file = folder / f"{name}_coco_format.json"
    if MetadataCatalog.get(name).get("json_file") or not file.is_file():
        return None
    try:
        cached = json.loads(file.read_text())
    except json.JSONDecodeError:
        return file
    current = json.loads(json.dumps(convert_to_coco_dict(name)))
    parts = ("images", "annotations", "categories")
    return file if any(cached.get(x) != current.get(x) for x in parts) else None


def build_evaluator(dataset_name: str, output_folder: str) -> DatasetEvaluator:
    """The evaluator of a data set by its `evaluator_type`, never on a cache of old annotations.

    Called by all processes of a run, which wait for each other.

    Args:
        output_folder: where results and Detectron2's cache of annotations are written.

    Raises:
        ValueError: an `evaluator_type` that is not for boxes; names the data set.
    """
    evaluators: dict[str, Any] = {
        "coco": lambda: COCOEvaluator(dataset_name, output_dir=output_folder),
        "lvis": lambda: LVISEvaluator(dataset_name, output_dir=output_folder),
        "pascal_voc": lambda: PascalVOCDetectionEvaluator(dataset_name),
    }
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", "")
    if kind not in evaluators:
        message = describe_unknown("evaluator_type", kind, evaluators)
        raise ValueError(f"Data set {dataset_name}: {message}")
    if kind == "coco" and comm.is_main_process():
        _remove_stale_cache(dataset_name, Path(output_folder))
    comm.synchronize()
    return evaluators[kind]()


def _remove_stale_cache(name: str, folder: Path) -> None:
    stale = find_stale_cache(name, folder)
    if stale:
        logging.getLogger(LOGGER_NAME).warning(
            f"{stale} has other annotations than data set {name} has now; it is made anew"
        )
        stale.unlink()
