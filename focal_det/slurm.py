"""Jobs of a Slurm cluster, through submitit; a training run among them goes on when requeued.

This file imports neither torch nor Detectron2: what waits for a training process should start at
once, because a signal that comes before it listens would end the job.
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

# Of a training run, which makes progress between two of them. submitit's 3 are for jobs of unknown
# length.
_MAX_TIMEOUTS = 1000
_TRAIN_PARAMETERS = {
    "name": "focal-det",
    "stderr_to_stdout": True,
    # Without it, the clusters with JobRequeue=0 refuse to requeue a job.
    "slurm_additional_parameters": {"requeue": True},
    # The other tasks of a run would wait for one that has failed.
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
    """submitit's executor.

    Args:
        folder: of its logs.
        words: KEY=VALUE parameters; a value is a Python literal or a text.
        cluster: None for Slurm, where there is one; "local" for this machine.
        defaults: parameters that the words may change.
        max_timeouts: how often a job is requeued because its time is over.

    Raises:
        ModuleNotFoundError: no submitit; says how to get it.
        ValueError: a word of another form, or an unknown parameter.
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

    submitit calls the object in each task of the job, and `checkpoint` in the first one, in the
    handler of the signal that announces a preemption or the end of the time.

    Attributes:
        words: arguments of `focal-det train`, without those below.
        flags: --resume, --overwrite and --eval-only, as far as they are given.
        num_restarts: how often the job has been requeued with these flags in mind.
        seconds_to_end: for the cluster to end the job after a run that was stopped by SIGTERM.
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
        # submitit ignores it.
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
            # A job that ended now by itself would not be requeued: after a preemption, Slurm does
            # that at the end of the grace time; in the tasks after the first, `checkpoint` does.
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
            # -SIGTERM: before it listened to signals, trained or removed an earlier run.
            if _wait(self._process) != -signal.SIGTERM:
                flags = self._continue()
        restarts = _count_restarts() + 1
        return DelayedSubmission(TrainJob(self.words, flags, restarts, self.seconds_to_end))

    def _get_flags(self) -> tuple[str, ...]:
        """The flags with which the run starts now."""
        # More: without a signal, such as after the failure of a machine.
        return self._continue() if _count_restarts() > self.num_restarts else self.flags

    def _continue(self) -> tuple[str, ...]:
        """The flags with which the run goes on."""
        return self.flags if "--eval-only" in self.flags else ("--resume",)

    def _ask_to_stop(self, *_: Any) -> None:
        # Once: a second signal stops the run without a checkpoint.
        if self._process and not self._is_asked:
            self._is_asked = True
            os.kill(self._process.pid, signal.SIGTERM)


def _count_restarts() -> int:
    return int(os.environ.get("SLURM_RESTART_COUNT", 0))


def _export_place() -> None:
    """Let the tasks of a job join one run, if it has several."""
    from submitit.helpers import TorchDistributedEnvironment

    place = TorchDistributedEnvironment()
    if place.world_size > 1:
        # A process takes the GPU of its LOCAL_RANK.
        place.export(set_cuda_visible_devices=False, overwrite=True)


def _get_signal() -> int:
    """The signal of submitit."""
    from submitit import JobEnvironment

    return getattr(signal, f"SIG{JobEnvironment.USR_SIG}")


@contextmanager
def _held_signals() -> Iterator[None]:
    """Let signals for this process wait until the end of the block.

    In a block that starts a process, their handlers would run there, too, or miss it.
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

    A signal handler may wait meanwhile: `Popen.wait` would hold a lock that the handler needs, and
    so this leaves the process as a zombie.
    """
    end = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert end is not None  # only without WNOHANG
    return end.si_status if end.si_code == os.CLD_EXITED else -end.si_status


def submit_train(
    job: TrainJob, folder: Path, words: Sequence[str], cluster: str = "slurm"
) -> tuple[str, Path]:
    """Submit a training run; returns the id of the job, and the file of its output.

    Args:
        folder: of submitit's files; all machines must share it.
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
