"""Jobs of a Slurm cluster, through submitit; a training run continues when its job is requeued.

This file imports neither torch nor Detectron2: the process that waits for a training run must start
fast, because a signal ends the job if it comes before the handlers are set.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from .messages import parse_value

# How often a training run may reach its time limit; high, as it makes progress each time.
# submitit's default is 3.
_MAX_TIMEOUTS = 1000
_TRAIN_PARAMETERS = {
    "name": "focal-det",
    "stderr_to_stdout": True,
    # Otherwise clusters with JobRequeue=0 refuse to requeue the job.
    "slurm_additional_parameters": {"requeue": True},
    # Otherwise the other tasks of a run wait for one that has failed.
    "slurm_srun_args": ["--kill-on-bad-exit=1"],
}


def make_executor(
    folder: Path,
    words: Sequence[str],
    cluster: Optional[str] = None,
    *,
    defaults: Optional[Mapping[str, Any]] = None,
    max_timeouts: int = 3,
) -> Any:
    """Build submitit's executor.

    Args:
        folder: for its files, logs included.
        words: KEY=VALUE parameters; a value is a Python literal or a text.
        cluster: "slurm", or "local" for this machine; None for Slurm if there is one, else "local".
        defaults: parameters that the words may change.
        max_timeouts: how often a job is requeued when it reaches its time limit.

    Raises:
        ModuleNotFoundError: no submitit; says how to get it.
        ValueError: a word that is not KEY=VALUE, or a parameter that submitit refuses.
    """
    try:
        import submitit
    except ModuleNotFoundError:
        raise ModuleNotFoundError("--launcher slurm needs submitit: pip install submitit") from None
    parameters = dict(defaults or {})
    for word in words:
        key, equals, value = word.partition("=")
        if not (key and equals and value):
            raise ValueError(f"--slurm takes KEY=VALUE, got {word!r}")
        parameters[key] = parse_value(value)
    timeouts = {f"{x}_max_num_timeout": max_timeouts for x in ("slurm", "local")}
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster, **timeouts)
    try:
        executor.update_parameters(**parameters)
    except (AssertionError, NameError, TypeError, ValueError) as error:  # as submitit raises them
        raise ValueError(f"--slurm: {error}") from None
    return executor


@dataclass
class TrainJob:
    """`focal-det train` in a process of its own, as a job that continues when it is requeued.

    submitit calls the object in each task of the job, and `checkpoint` in the first task only, in
    the handler of the signal that announces a preemption or the time limit.

    Attributes:
        words: arguments of `focal-det train`, without the flags below.
        flags: those of --resume, --overwrite and --eval-only that are given.
        num_restarts: restarts of the job that `flags` already accounts for.
        seconds_to_end: how long the cluster has to end the job after SIGTERM has stopped the run.
    """

    words: tuple[str, ...]
    flags: tuple[str, ...] = ()
    num_restarts: int = 0
    seconds_to_end: float = 600.0

    def __post_init__(self) -> None:
        self._process: Optional[subprocess.Popen] = None
        self._is_asked = False

    def __call__(self) -> None:
        """Train.

        Raises:
            SystemExit: with the code of `focal-det train`, if that is not 0.
        """
        _export_place()
        # submitit's own handler ignores it.
        signal.signal(signal.SIGTERM, self._ask_to_stop)
        words = ["train", *self._get_flags(), *self.words]
        with _held_signals():
            self._process = _start([sys.executable, "-m", "focal_det.tools", *words])
        try:
            code = _wait(self._process)
        finally:
            self._ask_to_stop()
            _wait(self._process)
        if code in (128 + signal.SIGTERM, -signal.SIGTERM):
            # A job that ended by itself now would not be requeued. After a preemption, Slurm
            # requeues it at the end of the grace time; tasks other than the first wait until
            # `checkpoint` of the first one has requeued it.
            print("waiting for the cluster to end this job", flush=True)
            time.sleep(self.seconds_to_end)
        if code:
            sys.exit(code if code > 0 else 128 - code)

    def checkpoint(self) -> Any:
        """Stop the run with a checkpoint; returns what submitit requeues."""
        from submitit.helpers import DelayedSubmission

        flags = self._get_flags()
        if self._process:
            self._ask_to_stop()
            # -SIGTERM: the run had not begun to train, so its flags still hold.
            if _wait(self._process) != -signal.SIGTERM:
                flags = self._continue()
        restarts = _count_restarts() + 1
        return DelayedSubmission(TrainJob(self.words, flags, restarts, self.seconds_to_end))

    def _get_flags(self) -> tuple[str, ...]:
        """The flags with which the run starts now."""
        # More restarts: the job was requeued without submitit's signal, as when a machine failed.
        return self._continue() if _count_restarts() > self.num_restarts else self.flags

    def _continue(self) -> tuple[str, ...]:
        """The flags with which the run continues."""
        return self.flags if "--eval-only" in self.flags else ("--resume",)

    def _ask_to_stop(self, *_: Any) -> None:
        # Once: a second signal stops the run without a checkpoint.
        if self._process and not self._is_asked:
            self._is_asked = True
            os.kill(self._process.pid, signal.SIGTERM)


def _count_restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))


def _export_place() -> None:
    """Let the tasks of a job join one run, if there are several."""
    from submitit.helpers import TorchDistributedEnvironment

    place = TorchDistributedEnvironment()
    if place.world_size > 1:
        # Each process picks its GPU by LOCAL_RANK, so it has to see all of them.
        place.export(set_cuda_visible_devices=False, overwrite=True)


def _get_signal() -> int:
    """The signal that tells submitit that the job will end."""
    from submitit import JobEnvironment

    return getattr(signal, f"SIG{JobEnvironment.USR_SIG}")


@contextmanager
def _held_signals() -> Iterator[None]:
    """Hold back signals to this process until the end of the block.

    While a child is being started, a handler could run in the child, too, or not know of it yet.
    """
    numbers = {_get_signal(), signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def _start(command: Sequence[str]) -> subprocess.Popen:
    """Start a process that ignores submitit's signal."""
    number = _get_signal()

    def set_signals() -> None:
        # Slurm sends it to all processes of a job, and it would kill this one.
        signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {number, signal.SIGTERM})

    return subprocess.Popen(command, preexec_fn=set_signals)


def _wait(process: subprocess.Popen) -> int:
    """Wait for the end of a process; returns its exit code, or -N after signal N.

    A signal handler may wait for the same process meanwhile. `Popen.wait` would hold a lock that
    the handler needs; this holds none, and leaves the process as a zombie, so that both see its
    end.
    """
    end = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert end is not None  # None only with WNOHANG
    return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status


def submit_train(
    job: TrainJob, folder: Path, words: Sequence[str], cluster: str = "slurm"
) -> tuple[str, Path]:
    """Submit a training run; returns the id of the job, and the file of its output.

    Args:
        folder: for submitit's files; all machines must share it.
        words: KEY=VALUE parameters of submitit.
        cluster: "local" for a process on this machine.

    Raises:
        ModuleNotFoundError: no submitit; says how to get it.
        FileNotFoundError: this machine belongs to no Slurm cluster.
        ValueError: a parameter that submitit or Slurm refuses.
    """
    if cluster == "slurm" and shutil.which("srun") is None:
        raise FileNotFoundError("--launcher slurm: there is no Slurm on this machine (no srun)")
    executor = make_executor(
        folder, words, cluster, defaults=_TRAIN_PARAMETERS, max_timeouts=_MAX_TIMEOUTS
    )
    from submitit.core.utils import FailedJobError

    try:
        submitted = executor.submit(job)
    except FailedJobError as error:
        raise ValueError(f"--launcher slurm: {str(error).strip()}") from None
    return submitted.job_id, submitted.paths.stdout
