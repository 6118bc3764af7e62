"""Check of the annotations of each data set, whatever its format."""

import sys
from pathlib import Path
from typing import Any

from focal_det.data.digits import build_digits
from focal_det.data.voc import find_evaluation_faults, read_voc

from .coco import check_coco
from .data_rules import (
    BOX_WITHOUT_AREA,
    INVALID_VOC_IMAGE,
    MISSING_ANNOTATION_FILE,
    UNREADABLE_DATASET,
)
from .findings import Findings
from .json_file import read_coco
from .plan import DataSet, Plan
from .records import check_records
from .rules import UNREADABLE_FOR_VOC
from .stages import Stage, register_check
from .values import is_whole


@register_check(Stage.ANNOTATIONS)
def check_datasets(plan: Plan, findings: Findings) -> None:
    """Check all annotations; leaves the images and class names in each `DataSet`."""
    for dataset in plan.datasets:
        # The digits are drawn when they are first needed.
        if dataset.spec.get("format") == "digits":
            build_digits(dataset.spec["split"])
        if dataset.metadata.get("json_file"):
            _check_json(dataset, findings)
        else:
            _check_without_json(dataset, plan, findings)


def _check_json(dataset: DataSet, findings: Findings) -> None:
    metadata = dataset.metadata
    file = Path(metadata.json_file)
    if not file.is_file():
        findings.add(MISSING_ANNOTATION_FILE, str(file))
        return
    content = read_coco(file, findings, is_train=dataset.use.is_train)
    if content is None:
        return
    if metadata.get("evaluator_type") == "lvis":
        _fill_in_lvis(content)
    image_root = Path(metadata.get("image_root", ""))
    for image in check_coco(content, file, findings, dataset.use):
        dataset.images.append({**image, "file_name": str(image_root / image["file_name"])})
    # The order in which Detectron2 numbers the classes.
    categories = [x for x in content["categories"] if is_whole(x.get("id"))]
    categories.sort(key=lambda x: x["id"])
    dataset.classes = [str(x.get("name")) for x in categories]


def _fill_in_lvis(content: dict[str, Any]) -> None:
    """Fill in what LVIS lacks: file names (the last two parts of the URLs) and iscrowd."""
    for image in content["images"]:
        if isinstance(image.get("coco_url"), str):
            image.setdefault("file_name", "/".join(image["coco_url"].split("/")[-2:]))
    for annotation in content["annotations"]:
        annotation.setdefault("iscrowd", 0)


def _check_without_json(dataset: DataSet, plan: Plan, findings: Findings) -> None:
    """Check a VOC folder, or a data set that is registered by code."""
    metadata = dataset.metadata
    records = _read_records(dataset, plan, findings)
    dataset.images = [x for x in records if x.get("file_name")]
    dataset.classes = list(metadata.get("thing_classes", []))
    # If the number of classes is not known, every id is accepted.
    num_classes = len(dataset.classes) or plan.settings.num_classes or sys.maxsize
    check_records(records, dataset.name, num_classes, findings, dataset.use)
    is_voc = metadata.get("evaluator_type") == "pascal_voc" and metadata.get("dirname")
    if is_voc and dataset.use.is_test:
        root = Path(metadata.dirname)
        for place in find_evaluation_faults(root, metadata.get("split", "")):
            findings.add(UNREADABLE_FOR_VOC, place)


def _read_records(dataset: DataSet, plan: Plan, findings: Findings) -> list[dict[str, Any]]:
    spec = dataset.spec
    errors: list[str] = []
    try:
        if spec.get("format") != "voc":
            return plan.get_records(dataset.name)
        records, without_area = read_voc(
            Path(spec["root"]), spec["split"], spec["classes"], dataset.name, errors
        )
    except Exception as error:  # code of the user's, which may raise anything
        findings.add(UNREADABLE_DATASET, f"{dataset.name}: {type(error).__name__}: {error}")
        return []
    for message in errors:
        findings.add(INVALID_VOC_IMAGE, message)
    for box in without_area:
        findings.add(BOX_WITHOUT_AREA, f"{dataset.name}: {box}")
    return records
