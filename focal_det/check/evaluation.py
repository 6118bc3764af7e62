"""Check of the evaluation of test sets, by running it."""

import tempfile
from typing import Any

import torch
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from focal_det.data.evaluation import build_evaluator, find_stale_cache

from .findings import Findings
from .plan import DataSet, Plan, silence
from .rules import FAILING_EVALUATION, STALE_CACHE
from .stages import Stage, register_check

_NUM_EVALUATED = 2  # images


@register_check(Stage.MODEL)
def check_evaluation(plan: Plan, findings: Findings) -> None:
    """Evaluate a few images of each test set, and find outdated caches of annotations."""
    for dataset in plan.datasets:
        if not dataset.use.is_test:
            continue
        stale = find_stale_cache(dataset.name, plan.output_dir / "inference")
        if stale:
            findings.add(STALE_CACHE, f"{dataset.name}: {stale}")
        _try_evaluation(plan, dataset, findings)


def _try_evaluation(plan: Plan, dataset: DataSet, findings: Findings) -> None:
    """Evaluate images with their own boxes as detections."""
    has_json = "json_file" in dataset.metadata.as_dict()
    try:
        records = plan.get_records(dataset.name)
        with_objects = [x for x in records if x.get("annotations")]
        _evaluate(dataset.name, (with_objects or records)[:_NUM_EVALUATED])
    except Exception as error:  # whatever it is, it would stop evaluation after training
        message = str(error) or "without a message"
        findings.add(FAILING_EVALUATION, f"{dataset.name}: {type(error).__name__}: {message}")
    finally:
        # The evaluator has set json_file to a file in the temporary folder, which no longer exists.
        if not has_json and "json_file" in dataset.metadata.as_dict():
            del dataset.metadata.json_file


def _evaluate(name: str, records: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder, silence():
        evaluator = build_evaluator(name, folder)
        evaluator.reset()
        evaluator.process(records, [{"instances": _make_detections(x)} for x in records])
        # Without img_ids, it would count all other images as missed, which is slow.
        if isinstance(evaluator, COCOEvaluator):
            evaluator.evaluate(img_ids=[x["image_id"] for x in records])
        else:
            evaluator.evaluate()


def _make_detections(record: dict[str, Any]) -> Instances:
    """The boxes of a dataset dict as detections of score 1."""
    objects = record.get("annotations", [])
    boxes = [BoxMode.convert(list(x["bbox"]), x["bbox_mode"], BoxMode.XYXY_ABS) for x in objects]
    found = Instances((record["height"], record["width"]))
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.scores = torch.ones(len(boxes))
    found.pred_classes = torch.tensor([x["category_id"] for x in objects], dtype=torch.int64)
    return found
