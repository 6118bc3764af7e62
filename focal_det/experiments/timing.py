"""Timing of contenders in one process, in turn, so that other load slows all of them alike."""

import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from torch.profiler import ProfilerActivity, profile
from tqdm import tqdm

_MAX_ERROR = 120  # characters


@dataclass
class Timing:
    """Measurements of one contender.

    Attributes:
        seconds: one for each round.
        peak_bytes: most bytes of the tensors that a call makes; None if it failed before.
        error: why it could not run; it is then left out of the rounds.
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
    """Call each contender once per round, after one call to warm up and one to read its memory.

    A contender that runs out of memory or is not implemented is reported; the others continue.

    Args:
        contenders: calls by name; the result is thrown away within the measured time.
        rounds: measured calls of each.
        device: "cpu" or "cuda"; decides how time and memory are read.
        desc: text of the progress bar.
    """
    timings = {name: Timing() for name in contenders}
    total = (rounds + 2) * len(contenders)
    with tqdm(total=total, desc=desc, unit=" runs", leave=False) as progress:
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
                    # CUDA's messages run to many lines.
                    first_line, _, _ = str(error).partition("\n")
                    timing.error = f"{type(error).__name__}: {first_line[:_MAX_ERROR]}"
    return timings


def find_largest_batch(step: Callable[[int], Any], *, limit: int = 1024) -> int:
    """Most images, up to `limit`, that `step(images)` takes without running out of GPU memory."""
    fits = 0
    too_many = limit + 1
    while too_many - fits > 1:
        if too_many > limit:
            # Nothing has failed yet. Doubling needs few of the large steps, which take longest.
            images = min(2 * fits or 1, limit)
        else:
            images = (fits + too_many) // 2
        try:
            step(images)
            fits = images
        except torch.cuda.OutOfMemoryError:
            too_many = images
        torch.cuda.empty_cache()
    return fits


def compute_ratios(
    timings: Mapping[str, Timing], ours: str
) -> dict[str, tuple[float, float, float]]:
    """Time of each other contender over ours: median and quartiles of the rounds' quotients.

    Contenders that failed are left out, and all are if ours failed.
    """
    ratios: dict[str, tuple[float, float, float]] = {}
    if timings[ours].error:
        return ratios
    for name, timing in timings.items():
        if name == ours or timing.error:
            continue
        # Round by round: other load slows both times of a round alike, and cancels out.
        quotients = [a / b for a, b in zip(timing.seconds, timings[ours].seconds)]
        low = high = quotients[0]
        if len(quotients) > 1:
            low, _, high = statistics.quantiles(quotients, n=4)
        ratios[name] = (statistics.median(quotients), low, high)
    return ratios


def summarize(
    timings: Mapping[str, Timing], ours: str, unit_bytes: Optional[int] = None
) -> dict[str, dict[str, Any]]:
    """The figures of each contender, for json.

    Args:
        unit_bytes: unit of "peak_units", such as the bytes of the logits.

    Returns:
        By contender: "median_seconds"; "ratio" to ours with "quartiles", None if ours failed;
        "peak_bytes"; and "peak_units", None without a unit. A contender that failed has "error"
        alone.
    """
    ratios = compute_ratios(timings, ours)
    ratios[ours] = (1.0, 1.0, 1.0)
    content: dict[str, dict[str, Any]] = {}
    for name, timing in timings.items():
        if timing.error:
            content[name] = {"error": timing.error}
            continue
        ratio, low, high = ratios.get(name, (None, None, None))
        units = None
        if unit_bytes and timing.peak_bytes is not None:
            units = timing.peak_bytes / unit_bytes
        content[name] = {
            "median_seconds": timing.median,
            "ratio": ratio,
            "quartiles": [low, high],
            "peak_bytes": timing.peak_bytes,
            "peak_units": units,
        }
    return content


def _measure_seconds(function: Callable[[], Any], device: str) -> float:
    # Calls on a GPU return before their work is done.
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def measure_peak_bytes(function: Callable[[], Any], device: str = "cpu") -> int:
    """Peak bytes of the tensors that one call makes, whether they outlive it or not."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    # The memory of the process would not show it: the allocator keeps what it once had.
    activities = [ProfilerActivity.CPU]
    with _quiet_stderr(), profile(activities=activities, profile_memory=True) as profiler:
        function()
    events = [x for x in profiler.profiler.kineto_results.events() if x.name() == "[memory]"]
    events.sort(key=lambda x: x.start_ns())
    return max(itertools.accumulate(x.nbytes() for x in events), default=0)


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Keep messages of torch's profiler from the terminal."""
    # They come from C++, past sys.stderr.
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
