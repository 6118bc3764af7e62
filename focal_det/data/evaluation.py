"""How data sets are evaluated, never against a cache of outdated annotations."""

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Optional

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
    """Find a cached json whose annotations are not those that data set `name` has now.

    For a data set without a json, Detectron2's COCOEvaluator writes one, and later uses whatever
    file of that name it finds, even if the annotations have changed since.

    Args:
        folder: the "inference" folder of OUTPUT_DIR.

    Returns:
        The stale file; None if there is no cache, or a current one.
    """
    file = folder / f"{name}_coco_format.json"
    if MetadataCatalog.get(name).get("json_file") or not file.is_file():
        return None
    try:
        cached = json.loads(file.read_text())
    except json.JSONDecodeError:
        return file
    # Through json, like the cache: tuples become lists.
    current = json.loads(json.dumps(convert_to_coco_dict(name)))
    # The rest of the file, "info", has the date it was written.
    for part in ("images", "annotations", "categories"):
        if cached.get(part) != current.get(part):
            return file
    return None


def build_evaluator(dataset_name: str, output_folder: str) -> DatasetEvaluator:
    """Build the evaluator of a data set's `evaluator_type`; a stale cache is removed first.

    Every process of a run must call this, since they wait for each other.

    Args:
        output_folder: where results and Detectron2's cache of annotations are written.

    Raises:
        ValueError: an `evaluator_type` that is not for boxes; names the data set.
    """
    # Functions: an evaluator reads its data set when it is built, from the cache if there is one.
    evaluators: dict[str, Callable[[], DatasetEvaluator]] = {
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
    # The other processes must not read the cache before it is removed.
    comm.synchronize()
    return evaluators[kind]()


def _remove_stale_cache(name: str, folder: Path) -> None:
    stale = find_stale_cache(name, folder)
    if stale is None:
        return
    logging.getLogger(LOGGER_NAME).warning(
        f"{stale} does not have the present annotations of data set {name}; it is made again"
    )
    stale.unlink()
