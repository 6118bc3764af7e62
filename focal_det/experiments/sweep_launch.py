"""Executes the runs of a sweep, several at a time on this machine or as jobs of a cluster."""

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from detectron2.config import CfgNode
from tqdm import tqdm

from focal_det.slurm import make_executor

from .records import get_figure
from .sweep_rows import Row, Start
from .sweep_runs import Run, execute, make_start_run, write_start_weights

_POLL_SECONDS = 1.0


def execute_all(runs: Sequence[Run], num_jobs: int) -> None:
    """Execute the runs that have no outcome yet, and show the progress of all.

    An interrupt ends the training processes as well.

    Args:
        num_jobs: runs at a time.
    """
    processes: set[subprocess.Popen] = set()
    slots: SimpleQueue[int] = SimpleQueue()
    for slot in range(num_jobs):
        slots.put(slot)

    def work(run: Run) -> dict[str, Any]:
        slot = slots.get()
        try:
            return execute(run, _share_machine(slot, num_jobs), processes)
        finally:
            slots.put(slot)

    with ThreadPoolExecutor(num_jobs) as pool:
        futures = {run: pool.submit(work, run) for run in runs if not run.read_result()}
        try:
            _watch(futures, runs)
        # KeyboardInterrupt is not an Exception.
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in tuple(processes):
                process.terminate()
            raise


def _share_machine(slot: int, num_jobs: int) -> dict[str, str]:
    """Environment variables of one of several concurrent runs: its part of the cores, one GPU."""
    # torch takes all cores for each process, and several runs would wait for each other.
    env = {}
    if "OMP_NUM_THREADS" not in os.environ:
        env["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // num_jobs))
    if num_jobs > 1 and torch.cuda.device_count() > 1:
        env["CUDA_VISIBLE_DEVICES"] = str(slot % torch.cuda.device_count())
    return env


def _watch(futures: Mapping[Run, Future], runs: Sequence[Run]) -> None:
    """Show the iterations of all runs, and each future's outcome, until every future is done."""
    total = sum(run.num_iters for run in runs)
    initial = sum(run.count_iters() for run in runs)
    ended: set[Run] = set()
    # A rate over a few minutes: runs differ in their speed, and evaluate at their end.
    bar = tqdm(total=total, initial=initial, unit="it", smoothing=0.05, desc="sweep")
    with bar as progress:
        while len(ended) < len(futures):
            for run, future in futures.items():
                if future.done() and run not in ended:
                    ended.add(run)
                    _report(describe_outcome(run, future.result()))
            num_iters = sum(run.num_iters for run in ended)
            num_iters += sum(run.count_iters() for run in runs if run not in ended)
            progress.set_postfix_str(f"{len(ended)}/{len(futures)} runs", refresh=False)
            progress.update(num_iters - progress.n)
            if len(ended) < len(futures):
                time.sleep(_POLL_SECONDS)


def _report(line: str) -> None:
    # Above the progress bar, and not on stdout, which is for results.
    tqdm.write(line, file=sys.stderr)


def describe_outcome(run: Run, result: Mapping[str, Any]) -> str:
    """One line on the outcome of a run."""
    name = f"{run.config.stem}, seed {run.seed}"
    if "figures" not in result:
        return f"{name}: {result['status']}: {result['error']} (see {run.terminal_file})"
    ap = get_figure(result, "AP")
    return f"{name}: {result['status']}, AP {ap:.1f}, {result['minutes']:.1f} minutes"


def execute_with_submitit(runs: Sequence[Run], executor: Any) -> None:
    """Execute each run that has no outcome yet as a job, and wait for all.

    Args:
        executor: of `make_executor`.
    """
    todo = [run for run in runs if not run.read_result()]
    jobs = {run: executor.submit(execute, run) for run in todo}
    with tqdm(total=len(jobs), unit="run", desc="sweep") as progress:
        for run, job in jobs.items():
            try:
                _report(describe_outcome(run, job.result()))
            except Exception as error:
                # A job that the cluster has ended leaves no outcome; the other jobs go on.
                reason = str(error).splitlines()[-1]
                _report(f"{run.config.stem}, seed {run.seed}: no outcome: {reason}")
            progress.update()


def make_launcher(
    name: str, num_jobs: int, parameters: Sequence[str], output: Path
) -> Callable[[Sequence[Run]], None]:
    """The function that executes runs.

    Args:
        name: "local" or "slurm".
        num_jobs: runs at a time on this machine.
        parameters: of submitit, see `make_executor`.
        output: folder of the sweep.

    Raises:
        ModuleNotFoundError: "slurm" without submitit.
        ValueError: `num_jobs` below 1, or a bad parameter.
    """
    if num_jobs < 1:
        raise ValueError(f"--jobs must be >= 1, got {num_jobs}")
    if name == "slurm":
        executor = make_executor(output / "slurm", parameters)
        return functools.partial(execute_with_submitit, executor=executor)
    return functools.partial(execute_all, num_jobs=num_jobs)


def execute_sweep(
    starts: Sequence[Start],
    configs: Mapping[Row, CfgNode],
    runs: Mapping[Row, Sequence[Run]],
    output: Path,
    launch: Callable[[Sequence[Run]], None],
) -> bool:
    """Execute all runs that have no result yet, after those that make their start weights.

    Args:
        starts: made if they are missing.
        configs: of the rows, whose MODEL.WEIGHTS name the start weights they need.
        runs: of each row.
        output: folder of configs and runs.
        launch: from `make_launcher`.

    Returns:
        Whether each run has a result now.

    Raises:
        KeyboardInterrupt: also for SIGTERM; training processes on this machine have been ended.
        ValueError: no start weights, as their run failed.
    """
    # Rows with the same config share their runs.
    unique = list(dict.fromkeys(run for of_row in runs.values() for run in of_row))
    num_done = sum(bool(run.read_result()) for run in unique)
    _report(f"{len(unique)} runs, {num_done} of them with a result; output: {output}")
    # A cluster ends a job by SIGTERM; the training processes must end with it, as on Ctrl+C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        for start in starts:
            users = [row for row, cfg in configs.items() if Path(cfg.MODEL.WEIGHTS) == start.file]
            is_needed = any(not run.read_result() for row in users for run in runs[row])
            if is_needed and not start.file.is_file():
                _make_start(start, output, launch)
        launch(unique)
    except KeyboardInterrupt:
        _report("repeat the command to continue")
        raise
    return all(run.read_result() for run in unique)


def _make_start(start: Start, output: Path, launch: Callable[[Sequence[Run]], None]) -> None:
    run = make_start_run(start, output)
    _report(f"first, the run for {start.file}, which the others start from")
    launch([run])
    write_start_weights(start, run)
