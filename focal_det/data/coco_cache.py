"""The COCO json that Detectron2 makes of a data set that has none, for its evaluator, and keeps beside the results."""

import json
from pathlib import Path
from typing import Optional

import focal_det.host  # noqa: F401  (first: says how to get Detectron2)

from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import convert_to_coco_dict


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
