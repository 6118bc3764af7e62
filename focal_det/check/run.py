"""All checks of a config, in order."""

import functools
from collections.abc import Callable
from typing import Any, Optional

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from focal_det.data.catalog import describe_unregistered, register_datasets
from focal_det.imbalance.measure import TrainingSetReport, measure_training_set
from focal_det.modeling.build import read_settings

from .config import check_classes, check_config, check_model
from .datasets import check_dataset, check_evaluation, silence
from .findings import Findings
from .images import check_images, check_overlap
from .training_set import add_findings

LABELLED_IMAGES = 200  # whose anchors are labelled, unless --images is lower


def run_checks(
    cfg: CfgNode,
    *,
    images: int = 0,
    dataset: Optional[str] = None,
    suggest: bool = False,
    is_training: bool = False,
    findings: Optional[Findings] = None,
) -> tuple[Findings, Optional[TrainingSetReport]]:
    """Check a config, its data sets, its model and its weights.

    Args:
        images: how many of each data set to decode, at even distances; 0 for all. No more are labelled either.
        dataset: check the data of this data set, instead of those of the config, and nothing else but the config.
        suggest: also look for anchors that fit better.
        is_training: whether this machine is about to train.
        findings: to add to, for a caller that wants what was found before an interrupt.

    Returns:
        What was found; and what was measured of the training set, if there are no errors and the model is a RetinaNet.

    Raises:
        ValueError: an unknown `dataset`.
    """
    findings = Findings() if findings is None else findings
    get_records = functools.cache(_load)  # a large json takes long
    try:
        register_datasets(cfg.MODEL.FOCAL_DET.DATASETS, source="MODEL.FOCAL_DET.DATASETS")
    except (OSError, ValueError) as error:
        if dataset not in DatasetCatalog.list():  # else another one is wrong
            what = "data sets that cannot be registered"
            findings.add("error", what, "Correct MODEL.FOCAL_DET.DATASETS.", str(error))
            return findings, None
    if dataset and dataset not in DatasetCatalog.list():
        raise ValueError(f"--dataset: {describe_unregistered(dataset)}")
    check_config(cfg, findings, is_training=is_training, dataset=dataset)
    _check_datasets(cfg, dataset, get_records, images, findings)
    if dataset or findings.get("error"):
        return findings, None
    for name in cfg.DATASETS.TEST:
        check_evaluation(cfg, name, get_records, findings)
    check_model(cfg, findings)
    if not read_settings(cfg).is_dense:
        place = f"MODEL.META_ARCHITECTURE {cfg.MODEL.META_ARCHITECTURE}"
        findings.add(
            "note", "anchors that were not looked at", "That is for RetinaNets only.", place
        )
    elif not findings.get("error"):
        report = measure_training_set(
            cfg, get_records, min(images or LABELLED_IMAGES, LABELLED_IMAGES), suggest=suggest
        )
        add_findings(report, findings)
        return findings, report
    return findings, None


def _check_datasets(
    cfg: CfgNode,
    dataset: Optional[str],
    get_records: Callable[[str], list[dict[str, Any]]],
    images: int,
    findings: Findings,
) -> None:
    """Check the data sets of a config, or one, each by itself and against each other."""
    files, classes = {}, {}
    train, test = cfg.DATASETS.TRAIN, cfg.DATASETS.TEST
    for name in [dataset] if dataset else dict.fromkeys((*train, *test)):
        if name not in DatasetCatalog.list():
            continue
        use = {
            "is_train": name in train or name not in test,
            "is_test": name in test or name not in train,
        }
        records, classes[name] = check_dataset(cfg, name, get_records, findings, **use)
        files[name] = check_images(records, findings, num_decoded=images)
    check_classes(cfg, classes, findings)
    if not dataset:
        check_overlap(
            {x: files[x] for x in train if x in files},
            {x: files[x] for x in test if x in files},
            findings,
        )


def _load(name: str) -> list[dict[str, Any]]:
    """Detectron2's dicts of a data set, without what loading them says."""
    with silence():
        return DatasetCatalog.get(name)
