"""Timing of contenders in one process, alternating, so that whatever else the machine does meets all of them alike."""

import itertools
import os
import platform
import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm


@dataclass
class Timing:
    """What was measured of one contender.

    Attributes:
        seconds: one for each round.
        peak_bytes: of the tensors that a call makes, at their peak; None if it failed before.
        error: why it could not run, if so; it is then left out of the rounds.
    """

    seconds: list[float] = field(default_factory=list)
    peak_bytes: Optional[int] = None
    error: Optional[str] = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def time_alternating(
    contenders: Mapping[str, Callable[[], Any]], *, rounds: int, device: str = "cpu", desc: str = ""
) -> dict[str, Timing]:
    """Call each contender once per round, in turn; before, once to warm up and once to read its memory.

    Args:
        contenders: what is called, by name; the result is thrown away within the measured time.
        rounds: measured calls of each.
        device: "cpu" or "cuda"; decides how time and memory are read.
        desc: shown beside the progress bar.

    A contender that fails with an error of memory or of what is not implemented is reported, and the others go on.
    """
    timings = {name: Timing() for name in contenders}
    with tqdm(
        total=(rounds + 2) * len(contenders), desc=desc, unit=" runs", leave=False
    ) as progress:
        for index in range(-2, rounds):
            for name, function in contenders.items():
                progress.update()
                timing = timings[name]
                if timing.error:
                    continue
                try:
                    if index == -2:
                        function()
                    elif index == -1:
                        timing.peak_bytes = measure_peak_bytes(function, device)
                    else:
                        timing.seconds.append(_measure_seconds(function, device))
                except (RuntimeError, MemoryError, NotImplementedError) as error:
                    timing.error = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    return timings


def find_largest_batch(step: Callable[[int], Any], *, limit: int = 1024) -> int:
    """The most images that `step(images)` takes without running out of a GPU's memory, up to `limit`; 0 if not even one."""
    fits, too_many = 0, limit + 1
    while too_many - fits > 1:
        images = min(2 * fits or 1, limit) if too_many > limit else (fits + too_many) // 2
        try:
            step(images)
            fits = images
        except torch.OutOfMemoryError:
            too_many = images
        torch.cuda.empty_cache()
    return fits


def compute_ratios(
    timings: Mapping[str, Timing], ours: str
) -> dict[str, tuple[float, float, float]]:
    """How many times as long the others take: median and quartiles of the quotients within a round; none if ours failed."""
    ratios = {}
    if timings[ours].error:
        return ratios
    for name, timing in timings.items():
        if name != ours and not timing.error:
            quotients = [a / b for a, b in zip(timing.seconds, timings[ours].seconds)]
            low, _, high = (
                statistics.quantiles(quotients, n=4) if len(quotients) > 1 else (quotients[0],) * 3
            )
            ratios[name] = (statistics.median(quotients), low, high)
    return ratios


def get_conditions(device: str, dtype: str) -> dict[str, Any]:
    """What a benchmark's result depends on besides its arguments."""
    name = (
        torch.cuda.get_device_name()
        if device == "cuda"
        else f"CPU, {torch.backends.cpu.get_cpu_capability()}"
    )
    return {
        "device": name,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _measure_seconds(function: Callable[[], Any], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure_peak_bytes(function: Callable[[], Any], device: str = "cpu") -> int:
    """The most bytes that the tensors made by one call have at a time, whether they live on or not."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with (
        _quiet_stderr(),
        profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler,
    ):
        function()
    events = [x for x in profiler.profiler.kineto_results.events() if x.name() == "[memory]"]
    return max(
        itertools.accumulate(x.nbytes() for x in sorted(events, key=lambda x: x.start_ns())),
        default=0,
    )


@contextmanager
def _quiet_stderr():
    """Keeps what torch's profiler tells on stderr, past Python, from the terminal."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def make_table(timings: Mapping[str, Timing], ours: str, unit_bytes: Optional[int]) -> list[str]:
    """Lines for a terminal: median time, ratio to ours with its quartiles, memory in units (or MB) of each contender.

    Args:
        unit_bytes: what memory is told in multiples of, such as the bytes of the logits; None for megabytes.
    """
    ratios, width = compute_ratios(timings, ours), max(map(len, timings))
    memory = "peak memory / logits" if unit_bytes else "peak memory (MB)"
    lines = [
        f"  {'':<{width}}  {'median (ms)':>12}  {'x ours':>8}  {'quartiles':>13}  {memory:>20}"
    ]
    for name, timing in timings.items():
        if timing.error:
            lines.append(f"  {name:<{width}}  {timing.error}")
            continue
        ratio, low, high = ratios.get(name, (1.0, 1.0, 1.0))
        spread = "" if name == ours else f"{low:.2f} - {high:.2f}"
        used = "" if timing.peak_bytes is None else f"{timing.peak_bytes / (unit_bytes or 1e6):.2f}"
        lines.append(
            f"  {name:<{width}}  {1000 * timing.median:>12.1f}  {ratio:>8.2f}  {spread:>13}  {used:>20}"
        )
    return lines


def to_json(
    timings: Mapping[str, Timing], ours: str, unit_bytes: Optional[int]
) -> dict[str, dict[str, Any]]:
    """By contender: "median_seconds", "ratio" to ours with "quartiles", "peak_bytes" and "peak_units"; or "error"."""
    ratios, content = compute_ratios(timings, ours), {}
    for name, timing in timings.items():
        if timing.error:
            content[name] = {"error": timing.error}
            continue
        ratio, low, high = ratios.get(name, (1.0, 1.0, 1.0))
        units = (
            timing.peak_bytes / unit_bytes if unit_bytes and timing.peak_bytes is not None else None
        )
        content[name] = {
            "median_seconds": timing.median,
            "ratio": ratio,
            "quartiles": [low, high],
            "peak_bytes": timing.peak_bytes,
            "peak_units": units,
        }
    return content
