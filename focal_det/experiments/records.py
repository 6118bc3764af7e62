"""The record of a run: its figures, and everything needed to say how they were measured."""

import json
import platform
import re
import subprocess
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any, Optional

import yaml

_PACKAGES = ("detectron2", "torch", "torchvision", "numpy", "opencv-python", "focal-det")


def make_record(
    run_dir: Path, command: str, dataset: str, *, num_threads: Optional[int] = None
) -> dict[str, Any]:
    """Collect a finished run of Detectron2.

    Args:
        run_dir: its OUTPUT_DIR, with config.yaml and metrics.json.
        command: what was typed, with its `--config-file`.
        dataset: what it was evaluated on.
        num_threads: of the run; by default of this process.

    Returns:
        A dict for json: "figures" (see `get_figures`), "dataset", "command", "config_file", "commit", "date", "device", "versions",
        "minutes" (wall time with evaluation), "config" (text of config.yaml) and "metrics" (lines of metrics.json).
    """
    config_file, metrics_file = run_dir / "config.yaml", run_dir / "metrics.json"
    metrics = read_metrics(metrics_file)
    return {
        "figures": get_figures(metrics),
        "dataset": dataset,
        "command": command,
        "config_file": re.search(r"--config-file[ =](\S+)", command).group(1),
        "commit": get_commit(),
        "date": date.today().isoformat(),
        "device": _get_device(config_file, num_threads),
        "versions": {"python": platform.python_version(), **{x: get_version(x) for x in _PACKAGES}},
        "minutes": round((metrics_file.stat().st_mtime - config_file.stat().st_mtime) / 60, 1),
        "config": config_file.read_text(),
        "metrics": metrics,
    }


def get_figures(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """The last value of every evaluation metric, such as "bbox/AP" in percent, of lines from `read_metrics`."""
    figures: dict[str, float] = {}
    for line in metrics:
        figures.update({key: value for key, value in line.items() if "bbox/" in key})
    return figures


def get_figure(record: dict[str, Any], metric: str) -> float:
    """A COCO metric such as "AP" of the record's data set, in percent.

    Where several data sets were evaluated, Detectron2 puts the set's name before the metric's.
    """
    figures = record["figures"]
    return figures[
        next(x for x in (f"{record['dataset']}/bbox/{metric}", f"bbox/{metric}") if x in figures)
    ]


def get_commit() -> Optional[str]:
    """Commit of the checkout that focal_det runs from, "+changes" if it has any; None if it is not a checkout."""
    git = ["git", "-C", str(Path(__file__).parent)]
    done = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    if done.returncode:
        return None
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True
    )
    return done.stdout.strip() + ("+changes" if changed.stdout.strip() else "")


def _get_device(config_file: Path, num_threads: Optional[int]) -> str:
    """Name of the device that the config asks for."""
    import torch

    if yaml.safe_load(config_file.read_text())["MODEL"]["DEVICE"].startswith("cuda"):
        return torch.cuda.get_device_name()
    return f"CPU, {num_threads or torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}"


def get_version(package: str) -> Optional[str]:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def read_metrics(metrics_file: Path) -> list[dict[str, Any]]:
    """The lines of Detectron2's metrics.json, one per iteration.

    Detectron2 appends to the file: where the iterations go back, a run was resumed or started anew, and what an earlier one wrote
    from there on is left out. So is a line that is being written, or that was when the run was killed.
    """
    metrics: list[dict[str, Any]] = []
    for text in metrics_file.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        while metrics and metrics[-1]["iteration"] > line["iteration"]:
            metrics.pop()
        if metrics and metrics[-1]["iteration"] == line["iteration"]:
            line = {**metrics.pop(), **line}
        metrics.append(line)
    return metrics
