"""Trainings over the rows of the paper's tables, or over a grid of keys; the results as table, picture and json.

    focal-det sweep --table 1b --base digits --seeds 3
    focal-det sweep --grid MODEL.RETINANET.FOCAL_LOSS_GAMMA=0.5,2 SOLVER.BASE_LR=0.01,0.02 --base configs/mine.yaml

What has a result is not trained again, and an interrupted training goes on from its checkpoint: repeat the command to continue.
"""

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import torch
import yaml
from detectron2.config import CfgNode

from focal_det import model_zoo
from focal_det.env import load_config
from focal_det.experiments import sweep_rows
from focal_det.experiments.sweep_rows import Row
from focal_det.experiments.sweep_runs import Run, execute_all, execute_with_submitit
from focal_det.modeling.build import flatten_config
from focal_det.report.sweep_results import draw_results, make_markdown

_DIGITS_MODEL = "digits/focal_retinanet_tiny.yaml"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; see `--help`."""
    parser = _make_parser()
    args = parser.parse_args(argv)
    if args.seeds < 1 or args.jobs < 1:
        parser.error(f"--seeds and --jobs must be >= 1, got {args.seeds} and {args.jobs}")
    if len(args.opts) % 2:
        parser.error(f"options are KEY VALUE pairs, got {' '.join(args.opts)!r}")
    try:
        base_file = sweep_rows.get_base_file(args.base)
        base = load_config(base_file, args.opts)
        tables = _read_tables(args, base)
        configs = {row: sweep_rows.merge_row(base, row) for rows in tables.values() for row in rows}
    except (ValueError, KeyError, FileNotFoundError) as error:
        parser.error(str(error.args[0]))
    if args.write:
        for row in configs:
            sweep_rows.write_config(row, base_file, args.opts, args.write / f"{row.slug}.yaml")
        print(f"{len(configs)} configs: {args.write}")
        return 0
    output = args.output or Path("output", "sweep", Path(args.base).stem)
    runs = _make_runs(configs, base_file, args, output)
    if args.base == "digits":
        _make_digits_backbone(Path(base.MODEL.WEIGHTS))
    _execute(list(dict.fromkeys(run for of_row in runs.values() for run in of_row)), args, output)
    for table, rows in tables.items():
        _write_results({row: runs[row] for row in rows}, table, args, argv, output)
    return 0


def _make_parser() -> argparse.ArgumentParser:
    summary, *epilog = __doc__.split("\n\n", 1)
    style = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="focal-det sweep",
        description=summary,
        epilog="\n\n".join(epilog),
        formatter_class=style,
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--table", nargs="+", metavar="T", help="tables of the paper: 1a 1b 1c 1d 1e 2 3, and prior"
    )
    what.add_argument(
        "--grid", nargs="+", metavar="KEY=V,V", help="all combinations of these values"
    )
    parser.add_argument(
        "--base",
        required=True,
        help="coco, digits, bccd (configs/PaperTables), or a config of yours",
    )
    parser.add_argument(
        "--seeds",
        type=int,
        default=1,
        metavar="N",
        help="train each row with SEED 1 to N (default: %(default)s)",
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1,
        metavar="N",
        help="trainings at a time on this machine (default: %(default)s)",
    )
    parser.add_argument(
        "--num-gpus",
        type=int,
        default=1,
        metavar="N",
        help="GPUs of each training (default: %(default)s)",
    )
    parser.add_argument(
        "--launcher",
        choices=["local", "slurm"],
        default="local",
        help="slurm: one job per training, by submitit",
    )
    parser.add_argument(
        "--slurm",
        nargs="+",
        default=[],
        metavar="K=V",
        help="submitit's parameters, such as slurm_partition=gpu",
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FOLDER",
        help="of runs and results (default: output/sweep/BASE)",
    )
    parser.add_argument(
        "--write",
        type=Path,
        metavar="FOLDER",
        help="write the rows as configs for train_net.py, and train nothing",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs for all rows, last")
    return parser


def _read_tables(args: argparse.Namespace, base: CfgNode) -> dict[str, list[Row]]:
    if args.grid:
        return {"grid": sweep_rows.make_grid(args.grid, base)}
    return {table: sweep_rows.read_table(table, args.base) for table in dict.fromkeys(args.table)}


def _make_runs(
    configs: dict[Row, CfgNode], base_file: Path, args: argparse.Namespace, output: Path
) -> dict[Row, list[Run]]:
    """The runs of each row, one per seed; rows with the same config share theirs."""
    runs: dict[Row, list[Run]] = {}
    first_with: dict[str, Row] = {}
    for row, cfg in configs.items():
        first = first_with.setdefault(cfg.dump(), row)
        if first is not row:
            runs[row] = runs[first]
            continue
        file = output / "configs" / f"{row.slug}.yaml"
        sweep_rows.write_config(row, base_file, args.opts, file)
        options = ("--num-gpus", str(args.num_gpus)) if cfg.MODEL.DEVICE != "cpu" else ()
        folders = {
            seed: output / "runs" / f"{row.slug}_seed{seed}" for seed in range(1, args.seeds + 1)
        }
        dataset = cfg.DATASETS.TEST[-1]
        runs[row] = [
            Run(file, seed, folder, dataset, cfg.SOLVER.MAX_ITER, options)
            for seed, folder in folders.items()
        ]
        for run in runs[row]:
            _check_same_settings(run, cfg)
    return runs


def _check_same_settings(run: Run, cfg: CfgNode) -> None:
    """Refuse to continue, or to count, a run that was started with other settings."""
    file = run.folder / "config.yaml"
    if not file.is_file():
        return
    expected, found = (flatten_config(yaml.safe_load(x)) for x in (cfg.dump(), file.read_text()))
    keys = [
        key
        for key in expected
        if key not in ("SEED", "OUTPUT_DIR") and expected[key] != found.get(key)
    ]
    if keys:
        raise SystemExit(
            f"{run.folder} holds a run with another {keys[0]}, {found.get(keys[0])!r}, than {run.config} has, "
            f"{expected[keys[0]]!r}; choose another --output, or remove the folder"
        )


def _make_digits_backbone(file: Path) -> None:
    """What the rows on digits start from: backbone and FPN of the shipped model, so that heads are new."""
    if file.is_file():
        return
    model = torch.load(
        model_zoo.get_checkpoint_url(_DIGITS_MODEL), map_location="cpu", weights_only=True
    )["model"]
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": {k: v for k, v in model.items() if k.startswith("backbone.")}}, file)


def _execute(runs: list[Run], args: argparse.Namespace, output: Path) -> None:
    todo = sum(not run.read_result() for run in runs)
    print(
        f"{len(runs)} trainings, {len(runs) - todo} of them with a result; output: {output}",
        flush=True,
    )
    if args.launcher == "slurm":
        return execute_with_submitit(runs, make_executor(output / "slurm", args.slurm))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return execute_all(runs, args.jobs)
    except KeyboardInterrupt:
        raise SystemExit("interrupted; repeat the command to continue") from None


def make_executor(folder: Path, words: Sequence[str], cluster: Optional[str] = None) -> Any:
    """submitit's executor with KEY=VALUE parameters; a value is a Python literal, or a text.

    Args:
        folder: of its logs.
        cluster: None for Slurm, where there is one; "local" for this machine.
    """
    try:
        import submitit
    except ModuleNotFoundError:
        raise SystemExit("--launcher slurm needs submitit: pip install submitit") from None
    pairs = [x.partition("=") for x in words]
    for key, equals, value in pairs:
        if not (key and equals and value):
            raise SystemExit(f"--slurm takes KEY=VALUE, got {key + equals + value!r}")
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    executor.update_parameters(**{key: sweep_rows.parse_value(value) for key, _, value in pairs})
    return executor


def _write_results(
    runs: dict[Row, list[Run]],
    table: str,
    args: argparse.Namespace,
    argv: Optional[Sequence[str]],
    output: Path,
) -> None:
    """results_TABLE as json, Markdown and picture, and the Markdown on the screen."""
    rows: list[dict[str, Any]] = []
    for row, of_row in runs.items():
        results = [
            json.loads(run.result_file.read_text()) for run in of_row if run.result_file.is_file()
        ]
        rows.append(
            {"row": row.name, "overrides": row.overrides, "paper": row.paper, "runs": results}
        )
    command = " ".join(["focal-det sweep", *(sys.argv[2:] if argv is None else argv)])
    content = {"table": table, "base": args.base, "command": command, "rows": rows}
    file = output / f"results_{table}.json"
    file.write_text(json.dumps(content, indent=1) + "\n")
    markdown = make_markdown(content)
    file.with_suffix(".md").write_text(markdown + "\n")
    draw_results(content, file.with_suffix(".png"))
    print(f"\nTable {table} on {args.base}\n\n{markdown}\n\nalso {file}, .md, .png")


if __name__ == "__main__":
    sys.exit(main())
