"""The processes of a run: they start together, and end together."""

import contextlib
import functools
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import FrameType
from typing import Any, Optional

import torch
from detectron2.engine.launch import DEFAULT_TIMEOUT, _find_free_port
from detectron2.utils import comm
from torch import distributed

from focal_det.host import create_local_group

from .data_workers import describe_signal, end_when_parent_dies
from .stop_request import get_stop_signals

# How long the other processes have to end by themselves after one has failed.
_SECONDS_TO_END = 5.0
_POLL_SECONDS = 0.5
_CONNECT_TIMEOUT = timedelta(seconds=5)
_STORE_KEY = "focal_det/store"
_VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")


class ProcessKilledError(RuntimeError):
    """A process of the run was killed by a signal, and could not send an error."""


@dataclass(frozen=True)
class Place:
    """The place of a process among those of its run.

    Attributes:
        rank: from 0, over all machines.
        local_rank: from 0, on this machine.
        num_processes: on all machines.
        num_local: on this machine.
        url: where the processes meet, as torch.distributed takes it.
    """

    rank: int
    local_rank: int
    num_processes: int
    num_local: int
    url: str


def read_place() -> Optional[Place]:
    """The place that torchrun, or a launcher with the same variables, has given this process.

    None without a launcher.

    Raises:
        ValueError: some of the launcher's variables are missing or not numbers.
    """
    values = {name: os.environ.get(name, "") for name in _VARIABLES}
    # Some clusters set one or two of these variables for every process, even without a launcher.
    if not (values["RANK"] and values["WORLD_SIZE"] and os.environ.get("MASTER_ADDR")):
        return None
    wrong = [f"{k}={v}" for k, v in values.items() if not v.isdigit()]
    if wrong:
        raise ValueError(
            f"{', '.join(wrong)}: the launcher of this process must set {', '.join(_VARIABLES)} to "
            "numbers, as torchrun does"
        )
    rank, local_rank, num_processes, num_local = (int(x) for x in values.values())
    return Place(rank, local_rank, num_processes, num_local, "env://")


def plan_places(num_local: int, num_machines: int, machine_rank: int, url: str) -> list[Place]:
    """The places of the processes to start on this machine.

    Args:
        url: where all processes meet; "auto" for a free port of this machine.

    Raises:
        ValueError: "auto" with several machines.
    """
    if url == "auto":
        if num_machines > 1:
            raise ValueError("--dist-url is required with --num-machines: tcp://FIRST_MACHINE:PORT")
        url = f"tcp://127.0.0.1:{_find_free_port()}"
    first = machine_rank * num_local
    num_processes = num_machines * num_local
    return [Place(first + i, i, num_processes, num_local, url) for i in range(num_local)]


@contextmanager
def joined(place: Place, uses_gpus: bool) -> Iterator[bool]:
    """Connect to the other processes of a run; in the block, Detectron2's `comm` knows them.

    Yields whether torchrun has restarted this run.

    Args:
        uses_gpus: each process takes one GPU of its machine; otherwise all use the CPU.

    Raises:
        ValueError: the machine has fewer GPUs than processes.
    """
    num_gpus = torch.cuda.device_count()
    if uses_gpus and place.num_local > num_gpus:
        raise ValueError(
            f"{place.num_local} processes on this machine, but torch finds {num_gpus} GPUs; "
            "--num-gpus 0 uses the CPU"
        )
    if uses_gpus:
        torch.cuda.set_device(place.local_rank)
    store, is_restart = _meet(place)
    distributed.init_process_group(
        "nccl" if uses_gpus else "gloo",
        store=store,
        rank=place.rank,
        world_size=place.num_processes,
        timeout=DEFAULT_TIMEOUT,
    )
    create_local_group(place.num_local)
    comm.synchronize()
    try:
        yield is_restart
    except Exception:
        # The others may be gone, and destroying the group could wait for them forever.
        raise
    except BaseException:
        distributed.destroy_process_group()
        raise
    # Otherwise torch's threads abort the process when it exits.
    distributed.destroy_process_group()


def _meet(place: Place) -> tuple[Any, bool]:
    """The store that these processes share, and whether torchrun has restarted them."""
    agent, *_ = next(
        distributed.rendezvous(place.url, place.rank, place.num_processes, timeout=DEFAULT_TIMEOUT)
    )
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return agent, False
    # When torchrun restarts processes, its store still has the addresses of the dead ones. Restart
    # counts differ between machines, so they do not help: the first process opens a new store.
    host = os.environ["MASTER_ADDR"]
    options: dict[str, Any] = {"world_size": place.num_processes, "wait_for_workers": False}
    if place.rank == 0:
        is_restart = agent.check([_STORE_KEY])
        store = distributed.TCPStore(host, 0, is_master=True, timeout=DEFAULT_TIMEOUT, **options)
        store.set("is_restart", str(is_restart))
        agent.set(_STORE_KEY, str(store.port))
        return store, is_restart
    deadline = time.monotonic() + DEFAULT_TIMEOUT.total_seconds()
    while True:
        port = int(agent.get(_STORE_KEY))
        try:
            # Try the port first: it may be that of the attempt before, where nobody answers.
            distributed.TCPStore(host, port, is_master=False, timeout=_CONNECT_TIMEOUT, **options)
            store = distributed.TCPStore(
                host, port, is_master=False, timeout=DEFAULT_TIMEOUT, **options
            )
            return store, store.get("is_restart") == b"True"
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(_POLL_SECONDS)


def share_from_first(make: Callable[[], Any]) -> Any:
    """Call `make` in the first process, and return its result in all of them.

    Args:
        make: returns anything but None, which would count as a failure.

    Raises:
        SystemExit: with code 2, in the others, if `make` fails; the first process raises its error.
    """
    outcome = [None]
    try:
        if comm.is_main_process():
            outcome = [make()]
    finally:
        if comm.get_world_size() > 1:
            distributed.broadcast_object_list(outcome, src=0)
    if outcome[0] is None:
        raise SystemExit(2)
    return outcome[0]


@functools.lru_cache(maxsize=1)
def _get_control_group() -> Any:
    # A group of its own, so that messages do not queue behind the gradients.
    return distributed.new_group(backend="gloo")


def agree_on(status: int) -> int:
    """The largest status of all processes; a collective operation."""
    if comm.get_world_size() == 1:
        return status
    value = torch.tensor(int(status))
    distributed.all_reduce(value, distributed.ReduceOp.MAX, group=_get_control_group())
    return int(value)


class _Child:
    """A process that was started, and the error that it has sent, if any."""

    def __init__(self, target: Callable[..., Any], args: Sequence[Any]) -> None:
        context = multiprocessing.get_context("spawn")  # a fork cannot use CUDA
        self.pipe, sender = context.Pipe(duplex=False)
        self.process: BaseProcess = context.Process(
            target=_run_child, args=(target, args, sender, os.getpid())
        )
        self.error: Optional[Exception] = None
        self.process.start()
        # The new process has a copy; now the pipe closes when that process ends.
        sender.close()

    def read_error(self) -> None:
        try:
            if self.pipe.poll():
                self.error = self.pipe.recv()
        except EOFError:
            return


def run_in_processes(target: Callable[..., Any], arguments: Iterable[Sequence[Any]]) -> None:
    """Call a function in several new processes at once, and wait for them to end.

    Signals that ask for a stop are passed on. When one process fails, the others are killed a few
    seconds later; when this process is killed, all end.

    Args:
        target: importable; its errors can be pickled.
        arguments: a tuple for each process.

    Raises:
        SystemExit: with the exit code of a process, if not 0, or 128 + a signal passed on.
        ProcessKilledError: a process was killed.
        Exception: the error of `target`.
    """
    children: list[_Child] = []
    passed_on: list[int] = []
    try:
        with _passing_on_signals(children, passed_on):
            for args in arguments:
                children.append(_Child(target, args))
            # A signal may have come before the last process was started.
            for number in passed_on:
                _signal_all(children, number)
            failed = _wait_for(children)
    finally:
        for child in children:
            child.process.kill()
            child.process.join()
    if failed and passed_on and children[0].error is None:
        raise SystemExit(128 + passed_on[0])
    if failed:
        _raise_failure(children, failed)


def _raise_failure(children: Sequence[_Child], failed: Sequence[_Child]) -> None:
    """Raise what has ended a run: the failure that caused the others."""
    for child in failed:
        code = child.process.exitcode or 0
        if code < 0 and child.error is None:
            raise ProcessKilledError(
                f"process {children.index(child)} of this run was killed by "
                f"{describe_signal(-code)}. Continue with --resume"
            )
    first_code = children[0].process.exitcode or 0
    # A signal in an evaluation stops the first process only; those that wait for it fail.
    if children[0] in failed and first_code > 128:
        raise SystemExit(first_code)
    for child in failed:
        if child.error is not None:
            raise child.error
    # Of the lowest rank: the others may have failed because they waited for it.
    raise SystemExit(min(failed, key=children.index).process.exitcode)


def _wait_for(children: Sequence[_Child]) -> list[_Child]:
    """Wait until all processes have ended, or some seconds after the first failure.

    Returns the processes that failed by themselves, in the order of their failure.
    """
    failed: list[_Child] = []
    deadline = math.inf
    while True:
        running = [x.process for x in children if x.process.is_alive()]
        for child in children:
            # Read at once: a long message would block the process that sends it.
            child.read_error()
            if child.process.exitcode and child not in failed:
                failed.append(child)
                deadline = min(deadline, time.monotonic() + _SECONDS_TO_END)
        # When time is up, the caller kills the others, which may wait for the failed one forever.
        if not running or time.monotonic() > deadline:
            return failed
        wait([x.sentinel for x in running], _POLL_SECONDS)


def _signal_all(children: Sequence[_Child], number: int) -> None:
    for child in children:
        pid = child.process.pid
        if pid is not None and child.process.is_alive():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)


@contextmanager
def _passing_on_signals(children: Sequence[_Child], passed_on: list[int]) -> Iterator[None]:
    def pass_on(number: int, frame: Optional[FrameType]) -> None:
        passed_on.append(number)
        _signal_all(children, number)

    before = {x: signal.signal(x, pass_on) for x in get_stop_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_child(
    target: Callable[..., Any], args: Sequence[Any], sender: Connection, parent_id: int
) -> None:
    _end_with(parent_id)
    # Until the run listens for signals, Ctrl+C ends this process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        target(*args)
    except Exception as error:
        sender.send(error)
        sys.exit(1)


def _end_with(parent_id: int) -> None:
    """End this process when its parent ends; its data workers then end, too."""
    if sys.platform == "linux":
        end_when_parent_dies()
        # The parent may have ended before the call.
        if os.getppid() != parent_id:
            os._exit(1)
        return
    parent = multiprocessing.parent_process()

    def wait_for_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait_for_parent, daemon=True).start()
