"""Benchmarks: the loss, the labels, a training step and inference, ours beside every peer that is installed."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Optional

import torch

from focal_det.env import ensure_environment
from focal_det.experiments.bench_cases import BENCHMARKS, OURS, get_shape
from focal_det.experiments.records import get_commit, get_version
from focal_det.experiments.timing import get_conditions, make_table, time_alternating, to_json
from focal_det.report.scaling import draw_scaling

_DTYPES = ("float32", "float16", "bfloat16")
_QUICK_NOTE = """\
--quick only shows that everything runs: its small inputs favour the peers (fixed costs of a call
outweigh the work), and one round is not a measurement. For figures, run without --quick."""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; see `--help`."""
    parser = argparse.ArgumentParser(prog="focal-det bench", description=__doc__)
    parser.add_argument("what", choices=sorted(BENCHMARKS), help="what is measured")
    parser.add_argument(
        "--rounds",
        type=int,
        default=7,
        help="measured calls of each, in turn (default: %(default)s)",
    )
    parser.add_argument(
        "--device", choices=["cpu", "cuda"], default="cpu", help="(default: %(default)s)"
    )
    parser.add_argument(
        "--dtype",
        choices=_DTYPES,
        default="float32",
        help="of the logits; of mixed precision for step and infer",
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="small inputs, one round: shows that it runs, not how fast; small inputs favour the peers",
    )
    parser.add_argument(
        "--write", type=Path, metavar="FOLDER", help="also write json and, of loss, a picture there"
    )
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds must be >= 1, got {args.rounds}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU, and torch finds none")
    if args.what == "labels" and args.dtype != "float32":
        parser.error("--dtype: labels are computed in float32 only")
    ensure_environment()
    conditions = get_conditions(args.device, args.dtype)
    print(", ".join(f"{key}: {value}" for key, value in conditions.items()))
    if args.quick:
        print(_QUICK_NOTE)
    results, rounds = [], 1 if args.quick else args.rounds
    for case in BENCHMARKS[args.what](args.device, getattr(torch, args.dtype), args.quick):
        timings = time_alternating(
            case.contenders, rounds=rounds, device=args.device, desc=case.name
        )
        print("\n".join(["", case.name, *make_table(timings, OURS, case.unit_bytes)]), flush=True)
        results.append(
            {"case": case.name, **case.size, "contenders": to_json(timings, OURS, case.unit_bytes)}
        )
    if args.write:
        content = {
            "benchmark": args.what,
            "shape": get_shape(args.what, args.quick),
            "quick": args.quick,
            "rounds": rounds,
        }
        content |= {"conditions": conditions, "results": results}
        command = ["focal-det bench", *(sys.argv[2:] if argv is None else argv)]
        versions = {
            x: get_version(x) for x in ("detectron2", "fvcore", "kornia", "torchvision", "triton")
        }
        origin = {
            "command": " ".join(command),
            "commit": get_commit(),
            "date": date.today().isoformat(),
            "versions": versions,
        }
        _write({**content, **origin}, args.write)
    return 0


def _write(content: dict, folder: Path) -> None:
    """A json named by its conditions, and a picture beside it if there are cases of growing size."""
    conditions = content["conditions"]
    words = [
        content["benchmark"],
        *["quick"] * content["quick"],
        content["shape"],
        conditions["device"],
    ]
    words += [
        f"{conditions['threads']} threads",
        conditions["dtype"],
        f"torch {conditions['torch']}",
    ]
    file = folder / (re.sub(r"[^\w.]+", "-", "_".join(words)) + ".json")
    folder.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content, indent=1) + "\n")
    print(f"\nresults: {file}")
    if any(x.get("scaling") for x in content["results"]):
        draw_scaling(content, file.with_suffix(".png"))
        print(f"picture: {file.with_suffix('.png')}")


if __name__ == "__main__":
    sys.exit(main())
