"""The tables of speed and memory, from the json of `focal-det bench` in benchmarks/."""

import json
import os
from pathlib import Path

OURS, LIMIT, PLAIN = "focal_det", "copy of the logits", "plain path"
ORDER = ("loss", "labels", "step", "infer")


def render_speed(files: list[Path], page: Path) -> str:
    """One row per case that is not part of a scaling: ours, and the fastest peer of the same run.

    The ratio is the median of the quotients of a round, with their quartiles.
    """
    lines = [
        "| what | focal_det | fastest peer | takes | quartiles | memory | peer's memory | record |",
        "|---" * 8 + "|",
    ]
    contents = [(file, json.loads(file.read_text())) for file in files]
    for file, content in sorted(contents, key=lambda x: ORDER.index(x[1]["benchmark"])):
        for case in content["results"]:
            if not case.get("scaling"):
                lines.append(
                    f"| {' | '.join([*_get_cells(case), f'[json]({os.path.relpath(file, page.parent)})'])} |"
                )
    return "\n".join(lines)


def render_headlines(files: list[Path]) -> str:
    """The cases that a reader of the README looks for, without spread and records."""
    lines = [
        "| what | focal_det | fastest peer | takes | memory | peer's memory |",
        "|---" * 6 + "|",
    ]
    contents = sorted(
        (json.loads(file.read_text()) for file in files), key=lambda x: ORDER.index(x["benchmark"])
    )
    for case in (
        case for content in contents for case in content["results"] if not case.get("scaling")
    ):
        if case.get("gamma", 2) == 2 and case.get("boxes", 300) in (5, 300):
            what, ours, peer, takes, _, *memory = _get_cells(case)
            lines.append(f"| {' | '.join([what, ours, peer, takes, *memory])} |")
    return "\n".join(lines)


def _get_cells(case: dict) -> list[str]:
    contenders = case["contenders"]
    peers = {
        k: v for k, v in contenders.items() if k not in (OURS, LIMIT, PLAIN) and "error" not in v
    }
    name, peer = min(peers.items(), key=lambda x: x[1]["median_seconds"])
    low, high = peer["quartiles"]
    ours = contenders[OURS]
    return [
        case["case"],
        _format_seconds(ours["median_seconds"]),
        name,
        f"{peer['ratio']:.3g} x",
        f"{low:.3g} to {high:.3g}",
        *(_format_memory(x) for x in (ours, peer)),
    ]


def _format_seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.1f} ms"


def _format_memory(contender: dict) -> str:
    if contender["peak_units"] is not None:
        return f"{contender['peak_units']:.2f} x logits"
    return f"{contender['peak_bytes'] / 1e6:.1f} MB"


def render_watch(file: Path) -> str:
    """What it costs to be watched, from the json of dev/measure_watch.py."""
    content = json.loads(file.read_text())
    ratios, check = content["step"]["median_ratios"], content["check"]
    step = f"median of {content['step']['rounds']} rounds of {content['step']['iterations']} iterations on digits, in turn"
    lines = ["| what | takes |", "|---|---|"]
    for name, what in (
        ("guard", "the guard of `focal-det train`"),
        ("telemetry", "telemetry"),
        ("both", "both"),
    ):
        lines.append(
            f"| a training step with {what}, against one without ({step}) | {ratios[name]:.3f} x |"
        )
    what = f"`focal-det check` on {check['images']:,} images with {check['annotations']:,} annotations, but for decoding them"
    lines.append(f"| {what} | {check['seconds']:.0f} s, {check['peak_gb']:.1f} GB |")
    return "\n".join(lines)
