"""The runs of a sweep: each is a training process, with a folder for its outcome."""

import json
import math
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import torch
import yaml
from detectron2.config import CfgNode, get_cfg

from focal_det.engine.step_guard import DIVERGED
from focal_det.files import open_to_replace, write_json
from focal_det.modeling.build import flatten_config

from .records import (
    compute_seconds_per_iter,
    drop_missing_figures,
    get_figure,
    get_history,
    make_record,
    read_metrics,
)
from .sweep_rows import Row, Start, Sweep, load_rows, write_row

_AVERAGE_PRECISIONS = ("bbox/AP", "bbox/AP50", "bbox/AP75")


# Plain values only: submitit pickles a run for its job.
@dataclass(frozen=True)
class Run:
    """One training run: a config that is on disk, and a seed.

    Attributes:
        config: yaml of the row.
        seed: SEED of the run.
        folder: its OUTPUT_DIR.
        dataset: the one whose figures count.
        num_iters: SOLVER.MAX_ITER.
        options: further words for `focal-det train`.
    """

    config: Path
    seed: int
    folder: Path
    dataset: str
    num_iters: int
    options: tuple[str, ...] = ()

    @property
    def result_file(self) -> Path:
        return self.folder / "result.json"

    @property
    def terminal_file(self) -> Path:
        """The output of the process."""
        return self.folder / "terminal.txt"

    @property
    def command(self) -> list[str]:
        """Arguments of python; a run that has a checkpoint goes on from it."""
        words = ["-m", "focal_det.tools.train", "--resume", "--config-file", str(self.config)]
        words += self.options
        return [*words, "SEED", str(self.seed), "OUTPUT_DIR", str(self.folder)]

    def read_result(self) -> dict[str, Any]:
        """The outcome, or {} if there is none or another try may change it."""
        if not self.result_file.is_file():
            return {}
        result = json.loads(self.result_file.read_text())
        # Unlike divergence, a crash may have come from outside: a full disk, a killed process.
        if result["status"] == "crashed":
            return {}
        return result

    def count_iters(self) -> int:
        """Iterations done, according to metrics.json."""
        if self.read_result():
            return self.num_iters
        file = self.folder / "metrics.json"
        if not file.is_file():
            return 0
        return max((x.get("iteration", 0) for x in read_metrics(file)), default=0)


def make_runs(
    configs: Mapping[Row, CfgNode],
    options: Sequence[str],
    output: Path,
    *,
    num_seeds: int = 1,
    num_gpus: int = 1,
) -> dict[Row, list[Run]]:
    """Write the rows' configs and return their runs, one per seed.

    Args:
        configs: each row's config, from `load_rows` with the same options.
        options: KEY VALUE pairs of all rows.
        output: folder of configs and runs.
        num_gpus: of each run, unless it is on the CPU.

    Returns:
        Runs by row; rows with the same config share theirs.

    Raises:
        ValueError: no seed, or a folder that holds a run with other settings.
    """
    if num_seeds < 1:
        raise ValueError(f"--seeds must be >= 1, got {num_seeds}")
    runs: dict[Row, list[Run]] = {}
    # The paper has some rows in several tables, such as the focal loss with its defaults.
    first_with: dict[str, Row] = {}
    for row, cfg in configs.items():
        first = first_with.setdefault(cfg.dump(), row)
        if first is not row:
            runs[row] = runs[first]
            continue
        file = output / "configs" / f"{row.slug}.yaml"
        write_row(row, options, file)
        words: tuple[str, ...] = ()
        if cfg.MODEL.DEVICE != "cpu":
            words = ("--num-gpus", str(num_gpus))
        runs[row] = _make_runs_of_row(file, cfg, output / "runs", num_seeds, words)
    return runs


def _make_runs_of_row(
    file: Path, cfg: CfgNode, folder: Path, num_seeds: int, words: tuple[str, ...]
) -> list[Run]:
    runs = []
    for seed in range(1, num_seeds + 1):
        run_folder = folder / f"{file.stem}_seed{seed}"
        # Of several data sets, the figures of the last one count.
        run = Run(file, seed, run_folder, cfg.DATASETS.TEST[-1], cfg.SOLVER.MAX_ITER, words)
        _check_same_settings(run, cfg)
        runs.append(run)
    return runs


def _check_same_settings(run: Run, cfg: CfgNode) -> None:
    """Refuse to continue, or to count, a run that was started with other settings."""
    file = run.folder / "config.yaml"
    if not file.is_file():
        return
    # All from yaml, which has no tuples.
    expected = flatten_config(yaml.safe_load(cfg.dump()))
    # A run of an older version lacks newer keys; it counts as trained with their defaults.
    found = flatten_config(yaml.safe_load(get_cfg().dump()))
    found |= flatten_config(yaml.safe_load(file.read_text()))
    for key, value in expected.items():
        if key not in ("SEED", "OUTPUT_DIR") and value != found.get(key):
            raise ValueError(
                f"{run.folder} holds a run with {key} {found.get(key)!r}, but {run.config} has "
                f"{value!r}; choose another --output, or remove the folder"
            )


def make_start_run(start: Start, output: Path) -> Run:
    """The run that start weights are taken from."""
    runs = make_runs(load_rows([start.row], ()), (), output)
    return runs[start.row][0]


def write_start_weights(start: Start, run: Run) -> None:
    """Write the parameters of a model that rows start from; all others start anew.

    Args:
        run: the one that has trained the model, from `make_start_run`.

    Raises:
        ValueError: the run failed, or the model has no such parameters.
    """
    if "figures" not in run.read_result():
        raise ValueError(f"no start weights: their run failed, see {run.terminal_file}")
    source = run.folder / "model_final.pth"
    model = torch.load(source, map_location="cpu", weights_only=True)["model"]
    kept = {name: value for name, value in model.items() if name.startswith(start.keep)}
    if not kept:
        raise ValueError(f"no start weights: {source} has no parameter {start.keep}*")
    start.file.parent.mkdir(parents=True, exist_ok=True)
    with open_to_replace(start.file) as stream:
        torch.save({"model": kept}, stream)


def execute(
    run: Run,
    env: Optional[Mapping[str, str]] = None,
    processes: Optional[set[subprocess.Popen]] = None,
) -> dict[str, Any]:
    """Train one run to its end and write its outcome.

    Args:
        env: variables on top of those of this process.
        processes: holds the training process while it runs.

    Returns:
        "status": "done", "no detections", "diverged" or "crashed"; with "error", a line of its
        output, for the last two. For the first two also "seconds_per_iter", "AP_after" (see
        `get_history`), and the run's record without the lines of metrics.json and the text of
        config.yaml.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, **(env or {})}
    command = [sys.executable, *run.command]
    with open(run.terminal_file, "w") as file:
        process = subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT)
        if processes is not None:
            processes.add(process)
        code = process.wait()
        if processes is not None:
            processes.remove(process)
    result: dict[str, Any] = {"seed": run.seed, "iterations": run.num_iters}
    if code:
        # A process that was killed may have stopped within a character.
        result |= _describe_failure(code, run.terminal_file.read_text(errors="replace"))
    else:
        # The process has ended, so its variables alone tell how many threads it had.
        num_threads = int(env.get("OMP_NUM_THREADS", 0)) or None
        result |= _read_outcome(run, num_threads)
    # A sweep that looks at its runs meanwhile must never read half a result.
    write_json(run.result_file, result)
    return result


def _describe_failure(code: int, output: str) -> dict[str, str]:
    lines = [x.strip() for x in output.splitlines() if x.strip()]
    # The step guard's message is not the last line of all: details of the step follow it.
    diverged = [x.removeprefix(DIVERGED) for x in lines if x.startswith(DIVERGED)]
    if diverged:
        return {"status": "diverged", "error": diverged[-1]}
    error = lines[-1] if lines else f"exit code {code}, no output"
    return {"status": "crashed", "error": error}


def _read_outcome(run: Run, num_threads: Optional[int]) -> dict[str, Any]:
    command = " ".join(["python", *run.command])
    record = make_record(run.folder, command, run.dataset, num_threads=num_threads)
    metrics = record.pop("metrics")
    del record["config"]
    status = "done"
    if math.isnan(get_figure(record, "AP")):
        # COCO's evaluator says NaN where there are no detections at all; by the definition of
        # average precision, that is 0.
        status = "no detections"
        precisions = [x for x in record["figures"] if x.endswith(_AVERAGE_PRECISIONS)]
        record["figures"] = dict.fromkeys(precisions, 0.0)
    record["figures"] = drop_missing_figures(record["figures"])
    return {
        "status": status,
        "seconds_per_iter": compute_seconds_per_iter(metrics),
        "AP_after": get_history(metrics, run.dataset, run.num_iters),
        **record,
    }


def make_results(
    sweep: Sweep, command: str, runs: Mapping[Row, Sequence[Run]]
) -> list[dict[str, Any]]:
    """The results of each table, for json.

    Args:
        command: the one that made the results.
        runs: of each row.

    Returns:
        "table", "base" (the sweep's name), "command" and "rows", each with "row", "overrides",
        "paper" and "runs", the outcomes of those runs that have one. An outcome with figures has an
        origin block of its own, see `execute`.
    """
    return [
        {
            "table": table,
            "base": sweep.name,
            "command": command,
            "rows": [_make_row_results(row, runs[row]) for row in rows],
        }
        for table, rows in sweep.tables.items()
    ]


def _make_row_results(row: Row, runs: Sequence[Run]) -> dict[str, Any]:
    files = [run.result_file for run in runs if run.result_file.is_file()]
    return {
        "row": row.name,
        "overrides": row.overrides,
        "paper": row.paper,
        "runs": [json.loads(file.read_text()) for file in files],
    }
