"""Records of runs and measurements: their figures, and where these come from.

Every json of results has the origin block of `make_origin` at its top level; that of a sweep has
it in each run that has figures.
"""

import json
import math
import platform
import re
import subprocess
from collections.abc import Mapping
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any, Optional

import torch
import yaml

_PACKAGES = (
    "detectron2",
    "torchvision",
    "numpy",
    "opencv-python",
    "fvcore",
    "kornia",
    "triton",
    "focal-det",
)


def make_origin(
    command: str, *, device: str = "cpu", num_threads: Optional[int] = None
) -> dict[str, Any]:
    """The origin block of a json: what was run, from which code, when and on what.

    Args:
        command: the one that made the figures.
        device: "cpu" or "cuda", where the figures were made.
        num_threads: of torch on the CPU; by default those of this process.

    Returns:
        "command", "commit" (see `get_commit`), "date", "device" (its name), "threads" and
        "versions" (of Python and packages; None for a package that is not installed).
    """
    device_name = f"CPU, {torch.backends.cpu.get_cpu_capability()}"
    if device == "cuda":
        device_name = torch.cuda.get_device_name()
    # torch's own version names its build as well, such as +cu130; its metadata may not.
    versions = {"python": platform.python_version(), "torch": str(torch.__version__)}
    return {
        "command": command,
        "commit": get_commit(),
        "date": date.today().isoformat(),
        "device": device_name,
        "threads": num_threads or torch.get_num_threads(),
        "versions": {**versions, **{x: _get_version(x) for x in _PACKAGES}},
    }


def make_record(
    run_dir: Path, command: str, dataset: str, *, num_threads: Optional[int] = None
) -> dict[str, Any]:
    """The record of a finished run of Detectron2.

    Args:
        run_dir: its OUTPUT_DIR, with config.yaml and metrics.json.
        command: the one that started it, with its `--config-file`.
        dataset: the one that it was evaluated on.
        num_threads: of the run; by default those of this process.

    Returns:
        A dict for json: the origin block, "figures" (see `get_figures`), "dataset", "config_file",
        "minutes" (wall time with evaluation), "config" (text of config.yaml) and "metrics" (lines
        of metrics.json).
    """
    config_file = run_dir / "config.yaml"
    metrics_file = run_dir / "metrics.json"
    metrics = read_metrics(metrics_file)
    config = config_file.read_text()
    device, _, _ = yaml.safe_load(config)["MODEL"]["DEVICE"].partition(":")
    # The first file is written when the run starts, the second when its evaluation ends.
    seconds = metrics_file.stat().st_mtime - config_file.stat().st_mtime
    return {
        "figures": get_figures(metrics),
        "dataset": dataset,
        **make_origin(command, device=device, num_threads=num_threads),
        "config_file": _find_config_file(command),
        "minutes": round(seconds / 60, 1),
        "config": config,
        "metrics": metrics,
    }


def _find_config_file(command: str) -> str:
    match = re.search(r"--config-file[ =](\S+)", command)
    if match is None:
        raise ValueError(f"the command of a run must have --config-file, got {command!r}")
    return match.group(1)


def get_figures(metrics: list[dict[str, Any]]) -> dict[str, float]:
    """The last value of every evaluation metric, such as "bbox/AP", in percent.

    Args:
        metrics: lines of `read_metrics`.
    """
    figures: dict[str, float] = {}
    for line in metrics:
        figures.update({key: value for key, value in line.items() if "bbox/" in key})
    return figures


def get_figure(record: Mapping[str, Any], metric: str) -> float:
    """A COCO metric of a record's data set, such as "AP", in percent."""
    figures = record["figures"]
    # Where several data sets were evaluated, Detectron2 puts the set's name before the metric's.
    of_dataset = f"{record['dataset']}/bbox/{metric}"
    if of_dataset in figures:
        return figures[of_dataset]
    return figures[f"bbox/{metric}"]


def get_history(metrics: list[dict[str, Any]], dataset: str, num_iters: int) -> dict[str, float]:
    """AP in percent at each evaluation of a run, by the number of iterations done until then.

    Args:
        metrics: lines of `read_metrics`.
        dataset: the one whose AP counts.
        num_iters: of the run.
    """
    history = {}
    for line in metrics:
        figures = get_figures([line])
        if figures:
            ap = get_figure({"figures": figures, "dataset": dataset}, "AP")
            # The first iteration is 0, but the line after the last one has the number of all.
            num_done = min(line["iteration"] + 1, num_iters)
            # COCO's evaluator says NaN where there are no detections.
            history[str(num_done)] = 0.0 if math.isnan(ap) else ap
    return history


def drop_missing_figures(figures: dict[str, float]) -> dict[str, float]:
    """Figures without those of sizes and classes that the data set lacks, which are NaN."""
    return {key: value for key, value in figures.items() if not math.isnan(value)}


def compute_seconds_per_iter(metrics: list[dict[str, Any]]) -> Optional[float]:
    """The lower quartile of the times of iterations; None for a run that has none.

    Args:
        metrics: lines of `read_metrics`.
    """
    # Each time is the median of 20 iterations. The lower quartile leaves out the windows in which
    # something else ran on the machine: most of them, if a comparison runs several jobs.
    times = sorted(line["time"] for line in metrics if "time" in line)
    if not times:
        return None
    return times[len(times) // 4]


def get_commit() -> Optional[str]:
    """Commit of the checkout that focal_det runs from, with "+changes" if files differ from it.

    None if focal_det does not run from a checkout.
    """
    git = ["git", "-C", str(Path(__file__).parent)]
    done = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True)
    if done.returncode:
        return None
    # Untracked files are left out: a run writes some of its own.
    changed = subprocess.run(
        [*git, "status", "--porcelain", "--untracked-files=no"], capture_output=True, text=True
    )
    suffix = "+changes" if changed.stdout.strip() else ""
    return done.stdout.strip() + suffix


def _get_version(package: str) -> Optional[str]:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def read_metrics(metrics_file: Path) -> list[dict[str, Any]]:
    """The lines of Detectron2's metrics.json, one per iteration.

    Detectron2 appends to the file. Where the iterations go back, a run was resumed or started anew;
    what the earlier run wrote from there on is left out, and so are incomplete lines.
    """
    metrics: list[dict[str, Any]] = []
    for text in metrics_file.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            # It is being written, or was when the run was killed.
            continue
        while metrics and metrics[-1]["iteration"] > line["iteration"]:
            metrics.pop()
        if metrics and metrics[-1]["iteration"] == line["iteration"]:
            line = {**metrics.pop(), **line}
        metrics.append(line)
    return metrics
