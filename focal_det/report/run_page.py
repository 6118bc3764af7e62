"""The page of a finished run: where it comes from, its metrics, its curves and its detections."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from matplotlib.figure import Figure

from focal_det.data.catalog import register_datasets
from focal_det.env import load_config
from focal_det.experiments.records import get_figure, get_figures, read_metrics
from focal_det.modeling.build import get_value, read_settings
from focal_det.modeling.parts import ARCHITECTURE, PROPOSAL_GENERATOR, ROI_HEADS
from focal_det.modeling.settings import read_stages

from .detections import make_comparison_figure, make_detections_figure
from .page import Page
from .telemetry import make_telemetry_figure
from .training_curves import make_training_curves_figure

_RESULTS = "inference/coco_instances_results.json"


@dataclass(frozen=True)
class FinishedRun:
    """The folder of a run that was evaluated with COCO metrics.

    Attributes:
        folder: its OUTPUT_DIR.
        cfg: its config.
        dataset: the last test set with COCO metrics, whose detections are in `results_file`.
        metrics: lines of `read_metrics`.
        results_file: the detections.
    """

    folder: Path
    cfg: CfgNode
    dataset: str
    metrics: list[dict[str, Any]]
    results_file: Path


def read_run(folder: Path) -> FinishedRun:
    """Read a finished run, and register the data sets of its config.

    Raises:
        FileNotFoundError: a file of a finished run is missing; names it.
        ValueError: no test set is evaluated with COCO metrics, or one is not registered.
    """
    for name in ("config.yaml", "metrics.json", _RESULTS):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} does not exist: {folder} is not the OUTPUT_DIR of a run that was "
                "evaluated with COCO metrics"
            )
    config_file = folder / "config.yaml"
    cfg = load_config(config_file)
    # Loading a config does not register the data sets that it defines; building a model does.
    register_datasets(cfg.MODEL.FOCAL_DET.DATASETS, source="MODEL.FOCAL_DET.DATASETS")
    return FinishedRun(
        folder=folder,
        cfg=cfg,
        dataset=_find_dataset(cfg, config_file),
        metrics=read_metrics(folder / "metrics.json"),
        results_file=folder / _RESULTS,
    )


def _find_dataset(cfg: CfgNode, config_file: Path) -> str:
    """The last test set with COCO metrics: its results have replaced those of the others."""
    for name in cfg.DATASETS.TEST:
        if name not in DatasetCatalog.list():
            raise ValueError(
                f"{config_file}: data set {name} is not registered; "
                "does FOCAL_DET_DATASETS name its file?"
            )
    names = [x for x in cfg.DATASETS.TEST if MetadataCatalog.get(x).get("evaluator_type") == "coco"]
    if not names:
        raise ValueError(
            f"{config_file}: none of DATASETS.TEST {tuple(cfg.DATASETS.TEST)} is evaluated "
            "with COCO metrics"
        )
    return names[-1]


def make_figures(
    run: FinishedRun,
    *,
    num_images: int = 12,
    score_thresh: float = 0.4,
    other: Optional[FinishedRun] = None,
) -> dict[str, Figure]:
    """The figures of a run by name: "curves", "telemetry" if it has any, and "detections".

    Args:
        other: a run whose detections are drawn beside those of `run`, in "comparison".

    Raises:
        ValueError: the detections are not those of the data set, see `make_detections_figure`; or
            the runs were evaluated on different data sets.
    """
    figures = {"curves": make_training_curves_figure(run.metrics)}
    telemetry = make_telemetry_figure(run.metrics)
    if telemetry is not None:
        figures["telemetry"] = telemetry
    figures["detections"] = make_detections_figure(
        run.dataset, run.results_file, num_images=num_images, score_thresh=score_thresh
    )
    if other is not None:
        if other.dataset != run.dataset:
            raise ValueError(
                f"{other.folder} was evaluated on {other.dataset}, {run.folder} on {run.dataset}"
            )
        results = [(_describe_run(x), x.results_file) for x in (run, other)]
        figures["comparison"] = make_comparison_figure(
            run.dataset, results, score_thresh=score_thresh
        )
    return figures


def _describe_run(run: FinishedRun) -> str:
    name = run.folder.resolve().name
    record = {"figures": get_figures(run.metrics), "dataset": run.dataset}
    return f"{name}: AP {get_figure(record, 'AP'):.1f}"


def make_run_page(
    run: FinishedRun,
    figures: Mapping[str, Figure],
    *,
    record: Optional[Mapping[str, Any]] = None,
) -> Page:
    """A page with the origin of a run, its COCO metrics and its figures.

    Args:
        figures: from `make_figures`.
        record: from `make_record`, if the command of the run is known.
    """
    page = Page(f"{run.folder.resolve().name}: {run.dataset}")
    page.add_table(["run", ""], _describe_origin(run, record))
    page.add_heading("Results")
    page.add_table(["metric", "%"], _list_figures(run.metrics))
    page.add_heading("Training")
    page.add_figure(figures["curves"], "losses, and average precision of each evaluation")
    if "telemetry" in figures:
        page.add_figure(figures["telemetry"], "what the classification loss is made of")
    page.add_heading("Detections")
    # This figure has a title only if it has no detections to show, and the title says so.
    detections = figures["detections"]
    caption = detections.get_suptitle() or "ground truth on the left, detections on the right"
    page.add_figure(detections, caption)
    if "comparison" in figures:
        page.add_heading("Beside another run")
        page.add_figure(figures["comparison"], "the same images, and the AP of each run in percent")
    return page


def _describe_origin(
    run: FinishedRun, record: Optional[Mapping[str, Any]]
) -> list[tuple[str, str]]:
    """Name and value of what is known about how the run was made."""
    cfg = run.cfg
    # Detectron2 counts the evaluation after training as one more iteration, without losses.
    trained = [line["iteration"] for line in run.metrics if "total_loss" in line]
    iterations = max(trained, default=-1) + 1
    rows = [
        ("folder", str(run.folder.resolve())),
        ("data set", run.dataset),
        ("architecture", "\n".join(_list_parts(cfg))),
        ("iterations", f"{iterations} of {cfg.SOLVER.IMS_PER_BATCH} images"),
    ]
    rows += _describe_losses(cfg)
    if record is None:
        return [*rows, ("device", cfg.MODEL.DEVICE)]
    versions = [f"{name} {version}" for name, version in record["versions"].items() if version]
    return [
        *rows,
        ("command", record["command"]),
        ("config file", record["config_file"]),
        ("commit", str(record["commit"])),
        ("device", record["device"]),
        ("minutes", str(record["minutes"])),
        ("versions", "\n".join(versions)),
    ]


def _list_parts(cfg: CfgNode) -> list[str]:
    """The architecture and, if it has two stages, its parts."""
    settings = read_settings(cfg)
    part_keys = [ARCHITECTURE]
    if settings.has_two_stages:
        part_keys += [PROPOSAL_GENERATOR, ROI_HEADS]
    return [get_value(cfg, key) for key in part_keys]


def _describe_losses(cfg: CfgNode) -> list[tuple[str, str]]:
    """Name and value of the classification losses, of both stages if there are two."""
    settings = read_settings(cfg)
    if settings.is_dense:
        return [("classification loss", cfg.MODEL.FOCAL_DET.CLS_LOSS.NAME)]
    # It is not known which losses another architecture uses.
    if not settings.node_key:
        return []
    return [
        (f"classification loss of the {x.title}", f"{x.loss.cls_loss}, sampling: {x.sampling}")
        for x in read_stages(cfg)
        if x.loss is not None
    ]


def _list_figures(metrics: list[dict[str, Any]]) -> list[tuple[str, str]]:
    """Name and value of the last evaluation's metrics."""
    rows = []
    for name, value in get_figures(metrics).items():
        # For sizes and classes that the data set lacks, Detectron2 records NaN.
        shown = "no such objects" if math.isnan(value) else f"{value:.1f}"
        rows.append((name.replace("bbox/", ""), shown))
    return rows
