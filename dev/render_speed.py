"""The tables of speed and memory, from the json of `focal-det bench` in benchmarks/."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

OURS = "focal_det"
# A copy is the least that any loss takes, and the plain path is ours as well.
NO_PEERS = (OURS, "copy of the logits", "plain path")
ORDER = ("loss", "labels", "step", "infer")
WATCHED = {
    "guard": "the guard of `focal-det train`",
    "telemetry": "telemetry",
    "both": "both",
}


def render_speed(files: Sequence[Path], page: Path) -> str:
    """One row per case: ours, and the fastest peer of the same run.

    The ratio is the median of the quotients of all rounds, with their quartiles.
    """
    lines = [
        "| what | focal_det time | fastest peer | speed-up | quartiles | memory | peer's memory "
        "| record |",
        "|---" * 8 + "|",
    ]
    for file, case in _read_cases(files):
        link = f"[json]({os.path.relpath(file, page.parent)})"
        lines.append(f"| {' | '.join([*_get_cells(case), link])} |")
    return "\n".join(lines)


def render_headlines(files: Sequence[Path]) -> str:
    """The cases for the README, without quartiles; with about as many boxes as a COCO image has."""
    lines = [
        "| what | focal_det time | fastest peer | speed-up | memory | peer's memory |",
        "|---" * 6 + "|",
    ]
    for _, case in _read_cases(files):
        if case.get("gamma", 2) == 2 and case.get("boxes", 5) == 5:
            what, ours, peer, takes, _, *memory = _get_cells(case)
            lines.append(f"| {' | '.join([what, ours, peer, takes, *memory])} |")
    return "\n".join(lines)


def _read_cases(files: Sequence[Path]) -> list[tuple[Path, dict]]:
    """All cases that are not part of a scaling, which has a picture instead."""
    contents = [(file, json.loads(file.read_text())) for file in files]
    # From the smallest part to the whole model, not by file name.
    contents.sort(key=lambda x: ORDER.index(x[1]["benchmark"]))
    return [(f, case) for f, x in contents for case in x["results"] if not case.get("scaling")]


def _get_cells(case: dict) -> list[str]:
    ours = case["contenders"][OURS]
    peers = {}
    for name, values in case["contenders"].items():
        # A peer that ran out of memory, or has no such case, has no time.
        if name not in NO_PEERS and "error" not in values:
            peers[name] = values
    fastest = min(peers, key=lambda name: peers[name]["median_seconds"])
    peer = peers[fastest]
    low, high = peer["quartiles"]
    return [
        case["case"],
        _format_seconds(ours["median_seconds"]),
        fastest,
        f"{peer['ratio']:.3g} x",
        f"{low:.3g} to {high:.3g}",
        _format_memory(ours),
        _format_memory(peer),
    ]


def _format_seconds(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.2f} s"
    return f"{1000 * seconds:.1f} ms"


def _format_memory(contender: dict) -> str:
    # In units of the input where it has one, as bytes mean little without its size.
    if contender["peak_units"] is not None:
        return f"{contender['peak_units']:.2f} x logits"
    return f"{contender['peak_bytes'] / 1e6:.1f} MB"


def render_watch(file: Path) -> str:
    """The cost of guard, telemetry and check, from the json of dev/measure_watch.py."""
    content = json.loads(file.read_text())
    step = content["step"]
    rounds = f"median of {step['rounds']} rounds of {step['iterations']} iterations on digits"
    lines = ["| what | cost |", "|---|---|"]
    for name, what in WATCHED.items():
        ratio = step["median_ratios"][name]
        step_with = f"a training step with {what}, against one without ({rounds}, in turn)"
        lines.append(f"| {step_with} | {ratio:.3f} x |")
    check = content["check"]
    size = f"{check['images']:,} images with {check['annotations']:,} annotations"
    cost = f"{check['seconds']:.0f} s, {check['peak_gb']:.1f} GB"
    lines.append(f"| `focal-det check` on {size}, without decoding the images | {cost} |")
    return "\n".join(lines)
