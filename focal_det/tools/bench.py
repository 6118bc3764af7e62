"""Benchmarks: the loss, the labels, a training step and inference, ours beside every peer that is installed."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import focal_det.host  # noqa: F401  (first: says how to get Detectron2)

import torch
from detectron2.config import get_cfg

from focal_det.analysis.benchmark import get_conditions, make_table, time_alternating, to_json
from focal_det.env import setup_environment
from focal_det.tools._bench_cases import BENCHMARKS, OURS


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; see `--help`."""
    parser = argparse.ArgumentParser(prog="focal-det bench", description=__doc__)
    parser.add_argument("what", choices=sorted(BENCHMARKS), help="what is measured")
    parser.add_argument("--rounds", type=int, default=7, help="measured calls of each, in turn (default: %(default)s)")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="(default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="small inputs, one round: says whether it runs, not how fast")
    parser.add_argument("--write", type=Path, metavar="FOLDER", help="also write a json there, named by its conditions")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        parser.error(f"--rounds must be >= 1, got {args.rounds}")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda needs a GPU, and torch finds none")
    if "FOCAL_DET" not in get_cfg().MODEL:
        setup_environment()
    conditions = get_conditions(args.device)
    print(", ".join(f"{key}: {value}" for key, value in conditions.items()))
    results, rounds = [], 1 if args.quick else args.rounds
    for case in BENCHMARKS[args.what](args.device, args.quick):
        timings = time_alternating(case.contenders, rounds=rounds, device=args.device, desc=case.name)
        print("\n".join(["", case.name, *make_table(timings, OURS, case.unit_bytes)]), flush=True)
        results.append({"case": case.name, **case.size, "contenders": to_json(timings, OURS, case.unit_bytes)})
    if args.write:
        content = {"benchmark": args.what, "quick": args.quick, "rounds": rounds, "conditions": conditions, "results": results}
        name = re.sub(
            r"[^\w.]+",
            "-",
            f"{args.what}{'_quick' * args.quick}_{conditions['device']}_{conditions['threads']}-threads_torch-{torch.__version__}",
        )
        args.write.mkdir(parents=True, exist_ok=True)
        (args.write / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
        print(f"\nresults: {args.write / name}.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
