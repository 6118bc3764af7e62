"""Checks of a registered data set: its annotations, and whether it can be evaluated."""

import contextlib
import io
import json
import logging
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import Metadata, MetadataCatalog
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from focal_det.data.digits import build_digits
from focal_det.data.evaluation import build_evaluator, find_stale_cache
from focal_det.data.voc import find_evaluation_faults, read_voc
from focal_det.imbalance.read import GetRecords
from focal_det.modeling.build import read_settings

from .annotations import is_whole
from .coco import check_coco, read_coco
from .findings import Findings
from .fix import fix_coco
from .records import check_records


def check_dataset(
    cfg: CfgNode,
    name: str,
    get_records: GetRecords,
    findings: Findings,
    *,
    is_train: bool,
    is_test: bool,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Check the annotations of a registered data set; return its images, for `check_images`, and the names of its classes."""
    metadata = MetadataCatalog.get(name)
    spec = metadata.get("focal_det_spec", {})
    use = {
        "is_train": is_train,
        "is_test": is_test,
        "filter_empty": cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
    }
    if spec.get("format") == "digits":
        build_digits(spec["split"])
    if metadata.get("json_file"):
        return _check_json(metadata, findings, **use)
    records = _read_records(name, spec, get_records, findings)
    classes = metadata.get("thing_classes", [])
    check_records(
        records,
        name,
        len(classes) or read_settings(cfg).num_classes or sys.maxsize,
        findings,
        **use,
    )
    if is_test and metadata.get("evaluator_type") == "pascal_voc" and metadata.get("dirname"):
        _check_voc_evaluation(Path(metadata.dirname), metadata.get("split", ""), findings)
    return [x for x in records if x.get("file_name")], list(classes)


def _check_voc_evaluation(root: Path, split: str, findings: Findings) -> None:
    advice = (
        "Evaluation would crash: correct them, or evaluate with COCO metrics (evaluator: coco)."
    )
    for place in find_evaluation_faults(root, split):
        findings.add("error", "annotations that VOC evaluation cannot read", advice, place)


def _check_json(
    metadata: Metadata, findings: Findings, *, is_train: bool, **use: bool
) -> tuple[list[dict], list[str]]:
    """The images of a COCO json with their whole paths, and its classes."""
    file, image_root = Path(metadata.json_file), Path(metadata.get("image_root", ""))
    if not file.is_file():
        findings.add(
            "error",
            "annotation files that do not exist",
            "Put them there, or correct the path.",
            str(file),
        )
        return [], []
    content = read_coco(file, findings, is_train=is_train)
    if content is None:
        return [], []
    if metadata.get("evaluator_type") == "lvis":
        _fill_in_lvis(content)
    images = check_coco(content, file, findings, is_train=is_train, **use)
    images = [{**x, "file_name": str(image_root / x["file_name"])} for x in images]
    categories = [x for x in content["categories"] if is_whole(x.get("id"))]
    return images, [str(x.get("name")) for x in sorted(categories, key=lambda x: x["id"])]


def _fill_in_lvis(content: dict[str, Any]) -> None:
    """LVIS names images by their address, folder and file, and has no crowds."""
    for image in content["images"]:
        if isinstance(image.get("coco_url"), str):
            image.setdefault("file_name", "/".join(image["coco_url"].split("/")[-2:]))
    for annotation in content["annotations"]:
        annotation.setdefault("iscrowd", 0)


def _read_records(
    name: str, spec: dict[str, Any], get_records: GetRecords, findings: Findings
) -> list[dict[str, Any]]:
    """The dicts of a data set without a json: a VOC folder, or one registered by code."""
    errors: list[str] = []
    try:
        if spec.get("format") != "voc":
            return get_records(name)
        records, without_area = read_voc(
            Path(spec["root"]), spec["split"], spec["classes"], name, errors
        )
    except Exception as error:  # code of the user's: it may raise anything
        advice = "Correct what it says."
        findings.add(
            "error",
            "data sets that cannot be read",
            advice,
            f"{name}: {type(error).__name__}: {error}",
        )
        return []
    for error in errors:
        findings.add(
            "error", "images whose annotations cannot be read", "Correct what it says.", error
        )
    for box in without_area:
        findings.add(
            "warning",
            "boxes without area",
            "They are left out. Correct the annotations.",
            f"{name}: {box}",
        )
    return records


def check_evaluation(cfg: CfgNode, name: str, get_records: GetRecords, findings: Findings) -> None:
    """Evaluate two images of a test set with their own boxes as detections, and look for a stale cache of annotations."""
    stale = find_stale_cache(name, Path(cfg.OUTPUT_DIR) / "inference")
    if stale:
        advice = "Detectron2 would evaluate with it: delete it. (focal-det train does.)"
        findings.add(
            "warning", "caches of annotations that have changed since", advice, f"{name}: {stale}"
        )
    metadata = MetadataCatalog.get(name)
    has_json = "json_file" in metadata.as_dict()
    try:
        all_records = get_records(name)
        records = [x for x in all_records if x.get("annotations")][:2] or all_records[:2]
        with tempfile.TemporaryDirectory() as folder, silence():
            evaluator = build_evaluator(name, folder)
            evaluator.reset()
            evaluator.process(records, [{"instances": _make_detections(x)} for x in records])
            some = (
                {"img_ids": [x["image_id"] for x in records]}
                if isinstance(evaluator, COCOEvaluator)
                else {}
            )
            evaluator.evaluate(**some)
    except Exception as error:  # whatever it is, it would stop the evaluation after the training
        what = f"{name}: {type(error).__name__}: {str(error) or 'without a message'}"
        findings.add(
            "error",
            "test sets whose evaluation fails",
            "It would after the training too: correct the data set.",
            what,
        )
    finally:
        if (
            not has_json and "json_file" in metadata.as_dict()
        ):  # the evaluator's, in the folder that is gone
            del metadata.json_file


def _make_detections(record: dict[str, Any]) -> Instances:
    """The boxes of a dataset dict, found with certainty."""
    objects = record.get("annotations", [])
    boxes = [BoxMode.convert(list(x["bbox"]), x["bbox_mode"], BoxMode.XYXY_ABS) for x in objects]
    found = Instances((record["height"], record["width"]))
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.scores = torch.ones(len(boxes))
    found.pred_classes = torch.tensor([x["category_id"] for x in objects], dtype=torch.int64)
    return found


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """What Detectron2 and pycocotools say, left out."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def write_fixed(name: str, out_file: Path) -> str:
    """Write a corrected copy of a data set's COCO json; return what was changed.

    Raises:
        ValueError: there is no json, it cannot be read, or `out_file` is it.
    """
    file = Path(MetadataCatalog.get(name).get("json_file", ""))
    if not file.is_file():
        raise ValueError(f"--fix: {name} has no COCO json")
    if out_file.resolve() == file.resolve():
        raise ValueError(f"--fix: {out_file} is the original; write to another file")
    content = read_coco(file, Findings())
    if content is None:
        raise ValueError(f"--fix: {file} cannot be read")
    fixed, changes = fix_coco(content)
    out_file.parent.mkdir(parents=True, exist_ok=True)
    out_file.write_text(json.dumps(fixed))
    return "\n  ".join(changes) or "nothing to correct"
