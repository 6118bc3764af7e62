"""All checks of a config, stage by stage."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Optional

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from focal_det.data.catalog import describe_unregistered, register_datasets
from focal_det.env import load_config
from focal_det.imbalance.measure import TrainingSetReport

from .findings import Findings
from .plan import Plan
from .rules import INVALID_DATASET_BLOCK
from .stages import Stage, get_checks, load_checks


def load_checked_config(
    file: str, opts: Sequence[str], dataset: Optional[str], *, unsafe_yaml: bool = False
) -> CfgNode:
    """Load the config; if `dataset` is registered, errors in FOCAL_DET_DATASETS do not matter.

    Args:
        opts: KEY VALUE pairs.
        dataset: as for `run_checks`.
        unsafe_yaml: see `load_config`.

    Raises:
        OSError, ValueError: as `load_config` raises them.
    """
    try:
        return load_config(file, opts, unsafe_yaml=unsafe_yaml)
    except (OSError, ValueError):
        # All correct blocks are registered by now.
        if dataset not in DatasetCatalog.list():
            raise
    return load_config(file, opts, unsafe_yaml=unsafe_yaml)


def run_checks(
    cfg: CfgNode,
    *,
    images: int = 0,
    dataset: Optional[str] = None,
    suggest: bool = False,
    is_training: bool = False,
    ignore: Iterable[str] = (),
    findings: Optional[Findings] = None,
) -> tuple[Findings, Optional[TrainingSetReport]]:
    """Check a config, its data sets, its model and its weights.

    Args:
        images: how many of each data set to decode, at even distances; 0 for all.
        dataset: check only the config and this data set.
        suggest: also look for anchors that fit better.
        is_training: whether this machine is about to train.
        ignore: ids of rules whose findings are left out.
        findings: receives the findings, for a caller that wants them even after an interrupt.

    Returns:
        The findings; and the measures of the training set, None if there are errors, if `dataset`
        is given or if the model has no anchors.

    Raises:
        ValueError: an unknown `dataset`, or an unknown id in `ignore`.
    """
    load_checks()
    if findings is None:
        findings = Findings()
    findings.ignore(ignore)
    if not _register_datasets(cfg.MODEL.FOCAL_DET.DATASETS, dataset, findings):
        return findings, None
    plan = Plan(cfg, num_decoded=images, only=dataset, suggest=suggest, is_training=is_training)
    for stage in Stage:
        # Building a model from broken data only repeats their faults in other words.
        if stage >= Stage.MODEL and (dataset or findings.get("error")):
            break
        _run_stage(stage, plan, findings)
    return findings, plan.report


def _register_datasets(
    blocks: Sequence[Mapping[str, Any]], dataset: Optional[str], findings: Findings
) -> bool:
    """Register the data sets of the config; returns whether there is something to check.

    Raises:
        ValueError: an unknown `dataset`.
    """
    try:
        register_datasets(blocks, source="MODEL.FOCAL_DET.DATASETS")
    except (OSError, ValueError) as error:
        # A wrong block does not matter if only another data set is checked.
        if dataset not in DatasetCatalog.list():
            findings.add(INVALID_DATASET_BLOCK, str(error))
            return False
    if dataset and dataset not in DatasetCatalog.list():
        raise ValueError(f"--dataset: {describe_unregistered(dataset)}")
    return True


def _run_stage(stage: Stage, plan: Plan, findings: Findings) -> None:
    for check in get_checks(stage):
        try:
            check(plan, findings)
        except Exception as error:
            if not findings.ignored_errors:
                raise
            # Not a bug of the check: it may rely on what an ignored error makes unreliable.
            ids = ", ".join(sorted(findings.ignored_errors))
            raise ValueError(
                f"{check.__name__} failed ({type(error).__name__}: {error}), perhaps because "
                f"of an ignored error ({ids})"
            ) from error
