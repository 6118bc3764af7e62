"""Timing of contenders in one process, alternating, so that whatever else the machine does meets all of them alike."""

import platform
import resource
import statistics
import threading
import time
from collections.abc import Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Callable, Optional

import torch
from tqdm import tqdm

_STATM = Path("/proc/self/statm")


@dataclass
class Timing:
    """What was measured of one contender.

    Attributes:
        seconds: one for each round.
        peak_bytes: memory above that before the call, the largest of all rounds; None where it cannot be read.
        error: why it could not run, if so; it is then left out of the rounds.
    """

    seconds: list[float] = field(default_factory=list)
    peak_bytes: Optional[int] = None
    error: Optional[str] = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def time_alternating(
    contenders: Mapping[str, Callable[[], Any]], *, rounds: int, device: str = "cpu", desc: str = "", warmup: int = 1
) -> dict[str, Timing]:
    """Call each contender once per round, in turn.

    Args:
        contenders: what is called, by name; the result is thrown away within the measured time.
        rounds: measured calls of each.
        device: "cpu" or "cuda"; decides how time and memory are read.
        desc: shown beside the progress bar.
        warmup: calls of each before, not measured. A contender that fails there with an error of memory or of what is not
            implemented is reported, and the others go on.
    """
    timings = {name: Timing() for name in contenders}
    with tqdm(total=(rounds + warmup) * len(contenders), desc=desc, unit=" runs", leave=False) as progress:
        for index in range(-warmup, rounds):
            for name, function in contenders.items():
                progress.update()
                if timings[name].error:
                    continue
                try:
                    seconds, peak = _measure(function, device)
                except (RuntimeError, MemoryError, NotImplementedError) as error:
                    timings[name].error = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
                    continue
                if index >= 0:
                    timings[name].seconds.append(seconds)
                    if peak is not None:
                        timings[name].peak_bytes = max(peak, timings[name].peak_bytes or 0)
    return timings


def compute_ratios(timings: Mapping[str, Timing], ours: str) -> dict[str, tuple[float, float, float]]:
    """How many times as long the others take: median and quartiles of the quotients within a round; none if ours failed."""
    ratios = {}
    if timings[ours].error:
        return ratios
    for name, timing in timings.items():
        if name != ours and not timing.error:
            quotients = [a / b for a, b in zip(timing.seconds, timings[ours].seconds)]
            low, _, high = statistics.quantiles(quotients, n=4) if len(quotients) > 1 else (quotients[0],) * 3
            ratios[name] = (statistics.median(quotients), low, high)
    return ratios


def get_conditions(device: str) -> dict[str, Any]:
    """What a benchmark's result depends on besides its arguments."""
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {torch.backends.cpu.get_cpu_capability()}"
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def _measure(function: Callable[[], Any], device: str) -> tuple[float, Optional[int]]:
    """Seconds of one call, and bytes of memory at its peak above those before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        function()
        torch.cuda.synchronize()
        return time.perf_counter() - start, torch.cuda.max_memory_allocated() - before
    with _watch_memory() as peak:
        start = time.perf_counter()
        function()
        seconds = time.perf_counter() - start
    return seconds, peak()


@contextmanager
def _watch_memory():
    """Reads the memory of the process every two milliseconds; yields a function that says the most above the start."""
    if not _STATM.exists():
        yield lambda: None
        return
    start, most, done = _read_memory(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, _read_memory())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield lambda: max(0, max(most, _read_memory()) - start)
    finally:
        done.set()
        thread.join()


def _read_memory() -> int:
    return int(_STATM.read_text().split()[1]) * resource.getpagesize()


def make_table(timings: Mapping[str, Timing], ours: str, unit_bytes: Optional[int]) -> list[str]:
    """Lines for a terminal: median time, ratio to ours with its quartiles, memory in units (or MB) of each contender.

    Args:
        unit_bytes: what memory is told in multiples of, such as the bytes of the logits; None for megabytes.
    """
    ratios, width = compute_ratios(timings, ours), max(map(len, timings))
    memory = "peak memory / logits" if unit_bytes else "peak memory (MB)"
    lines = [f"  {'':<{width}}  {'median (ms)':>12}  {'x ours':>8}  {'quartiles':>13}  {memory:>20}"]
    for name, timing in timings.items():
        if timing.error:
            lines.append(f"  {name:<{width}}  {timing.error}")
            continue
        ratio, low, high = ratios.get(name, (1.0, 1.0, 1.0))
        spread = "" if name == ours else f"{low:.2f} - {high:.2f}"
        used = "" if timing.peak_bytes is None else f"{timing.peak_bytes / (unit_bytes or 1e6):.2f}"
        lines.append(f"  {name:<{width}}  {1000 * timing.median:>12.1f}  {ratio:>8.2f}  {spread:>13}  {used:>20}")
    return lines


def to_json(timings: Mapping[str, Timing], ours: str, unit_bytes: Optional[int]) -> dict[str, dict[str, Any]]:
    """By contender: "median_seconds", "ratio" to ours with "quartiles", "peak_bytes" and "peak_units"; or "error"."""
    ratios, content = compute_ratios(timings, ours), {}
    for name, timing in timings.items():
        if timing.error:
            content[name] = {"error": timing.error}
            continue
        ratio, low, high = ratios.get(name, (1.0, 1.0, 1.0))
        units = timing.peak_bytes / unit_bytes if unit_bytes and timing.peak_bytes is not None else None
        content[name] = {
            "median_seconds": timing.median,
            "ratio": ratio,
            "quartiles": [low, high],
            "peak_bytes": timing.peak_bytes,
            "peak_units": units,
        }
    return content
