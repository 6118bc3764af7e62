"""The runs of a sweep: each a training process of its own in a folder of its own, whose outcome is a json in that folder."""

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Optional

import torch
from tqdm import tqdm

from focal_det.engine.step_guard import DIVERGED

from .records import get_figure, make_record, read_metrics

_POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Run:
    """One training: a config that is on disk, and a seed.

    Attributes:
        config: yaml of the row.
        seed: SEED of the run.
        folder: its OUTPUT_DIR.
        dataset: what its figures are of.
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
    def command(self) -> list[str]:
        """What python is given; a run that has a checkpoint goes on from it."""
        words = [
            "-m",
            "focal_det.tools.train",
            "--resume",
            "--config-file",
            str(self.config),
            *self.options,
        ]
        return [*words, "SEED", str(self.seed), "OUTPUT_DIR", str(self.folder)]

    def read_result(self) -> dict[str, Any]:
        """The outcome if there is one that a further try would not change, else {}."""
        result = json.loads(self.result_file.read_text()) if self.result_file.is_file() else {}
        return {} if result.get("status") == "crashed" else result

    def count_iters(self) -> int:
        """Iterations done, as far as metrics.json says."""
        file = self.folder / "metrics.json"
        if self.read_result():
            return self.num_iters
        return (
            max((x.get("iteration", 0) for x in read_metrics(file)), default=0)
            if file.is_file()
            else 0
        )


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
        "status": "done", "no detections", "diverged" or "crashed", with "error", a line of its output, for the last two; and for
        the first two what `make_record` says, but without the lines of metrics.json and the text of config.yaml.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    terminal, processes = run.folder / "terminal.txt", set() if processes is None else processes
    env = {**os.environ, **(env or {})}
    with open(terminal, "w") as file:
        process = subprocess.Popen(
            [sys.executable, *run.command], env=env, stdout=file, stderr=subprocess.STDOUT
        )
        processes.add(process)
        code = process.wait()
        processes.remove(process)
    num_threads = int(env["OMP_NUM_THREADS"]) if "OMP_NUM_THREADS" in env else None
    result = _read_outcome(run, code, terminal.read_text(errors="replace"), num_threads)
    unfinished = run.result_file.with_suffix(
        ".part"
    )  # a sweep that looks on never reads half a result
    unfinished.write_text(json.dumps(result, indent=1) + "\n")
    unfinished.replace(run.result_file)
    return result


def _read_outcome(run: Run, code: int, output: str, num_threads: Optional[int]) -> dict[str, Any]:
    origin = {"seed": run.seed, "iterations": run.num_iters}
    if code:
        lines = [x.strip() for x in output.splitlines() if x.strip()] or [
            f"exit code {code}, no output"
        ]
        diverged = [x.removeprefix(DIVERGED) for x in lines if x.startswith(DIVERGED)]
        return {
            **origin,
            "status": "diverged" if diverged else "crashed",
            "error": (diverged or lines)[-1],
        }
    record = make_record(
        run.folder, " ".join(["python", *run.command]), run.dataset, num_threads=num_threads
    )
    times = sorted(line["time"] for line in record.pop("metrics") if "time" in line)
    del record["config"], record["command"], record["config_file"]
    is_nan = math.isnan(get_figure(record, "AP"))
    if is_nan:  # of no detections at all, COCO's evaluator says so; by the definition of average precision it is 0
        record["figures"] = {
            key: 0.0
            for key in record["figures"]
            if key.endswith(("bbox/AP", "bbox/AP50", "bbox/AP75"))
        }
    # What is left is of sizes and classes that the data set does not have.
    record["figures"] = {
        key: value for key, value in record["figures"].items() if not math.isnan(value)
    }
    status = "no detections" if is_nan else "done"
    return {
        **origin,
        "status": status,
        "seconds_per_iter": times[len(times) // 2] if times else None,
        **record,
    }


def execute_all(runs: Sequence[Run], jobs: int) -> None:
    """Train what has no outcome yet, `jobs` at a time, and show how far all are; an interrupt ends the trainings as well."""
    processes: set[subprocess.Popen] = set()
    slots: SimpleQueue[int] = SimpleQueue()
    for slot in range(jobs):
        slots.put(slot)

    def work(run: Run) -> dict[str, Any]:
        slot = slots.get()
        try:
            return execute(run, _share_machine(slot, jobs), processes)
        finally:
            slots.put(slot)

    with ThreadPoolExecutor(jobs) as pool:
        futures = {run: pool.submit(work, run) for run in runs if not run.read_result()}
        try:
            _watch(futures, runs)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in tuple(processes):
                process.terminate()
            raise


def _share_machine(slot: int, jobs: int) -> dict[str, str]:
    """Variables for one of several trainings at a time: its part of the cores, and with several GPUs one of its own."""
    env = (
        {}
        if "OMP_NUM_THREADS" in os.environ
        else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    )
    if jobs > 1 and torch.cuda.device_count() > 1:
        env["CUDA_VISIBLE_DEVICES"] = str(slot % torch.cuda.device_count())
    return env


def _watch(futures: dict[Run, Any], runs: Sequence[Run]) -> None:
    """Show progress in iterations of all runs until every future is done, and a line for each as it ends."""
    told: set[Run] = set()
    start = sum(run.count_iters() for run in runs)
    with tqdm(
        total=sum(run.num_iters for run in runs),
        initial=start,
        unit="it",
        smoothing=0.05,
        desc="sweep",
    ) as progress:
        while len(told) < len(futures):
            for run, future in futures.items():
                if future.done() and run not in told:
                    told.add(run)
                    progress.write(describe(run, future.result()))
            progress.set_postfix_str(f"{len(told)}/{len(futures)} runs", refresh=False)
            progress.update(
                sum(run.num_iters if run in told else run.count_iters() for run in runs)
                - progress.n
            )
            time.sleep(_POLL_SECONDS if len(told) < len(futures) else 0)


def describe(run: Run, result: dict[str, Any]) -> str:
    """One line on the outcome of a run."""
    name = f"{run.config.stem}, seed {run.seed}"
    if "figures" in result:
        return f"{name}: {result['status']}, AP {get_figure(result, 'AP'):.1f}, {result['minutes']:.1f} minutes"
    return f"{name}: {result['status']}: {result['error']} (see {run.folder / 'terminal.txt'})"


def execute_with_submitit(runs: Iterable[Run], executor: Any) -> None:
    """One job per run, through an executor of submitit's (a Slurm cluster, or this machine); waits for all."""
    todo = [run for run in runs if not run.read_result()]
    jobs = {run: executor.submit(execute, run) for run in todo}
    with tqdm(total=len(jobs), unit="run", desc="sweep") as progress:
        for run, job in jobs.items():
            try:
                progress.write(describe(run, job.result()))
            except (
                Exception
            ) as error:  # a job that the cluster ended has no outcome, and the others go on
                progress.write(
                    f"{run.config.stem}, seed {run.seed}: no outcome: {str(error).splitlines()[-1]}"
                )
            progress.update()
