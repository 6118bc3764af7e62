"""Run rows of the paper's tables, of a file or of a grid; results as table, picture and JSON.

Repeat the command to continue: finished runs are kept, and interrupted runs resume.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from focal_det.experiments.sweep_launch import execute_sweep, make_launcher
from focal_det.experiments.sweep_rows import load_rows, read_sweep, write_row
from focal_det.experiments.sweep_runs import make_results, make_runs
from focal_det.files import write_json, write_text
from focal_det.report.sweep_results import make_results_figure, make_results_table

from ._arguments import add_json_argument, add_output_argument
from ._launcher import add_launcher_arguments, return_opts
from ._program import FAILED, run_program

_NUMBERS = {"seeds": "seeds per row, from 1", "jobs": "parallel runs", "num-gpus": "GPUs per run"}


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; see `--help`."""
    example = "focal-det sweep --table 1b --base digits --seeds 3 --jobs 2"
    return run_program("sweep", __doc__, _add_arguments, _run, argv, example=example)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    tables = "tables of the paper (1a to 1e, 2, 3, prior), or of --rows (default: all)"
    add("--table", nargs="+", metavar="T", help=tables)
    choose = parser.add_mutually_exclusive_group().add_argument
    choose("--rows", type=Path, metavar="FILE", help="rows, such as projects/Losses/rows.json")
    choose("--grid", nargs="+", metavar="KEY=V,V", help="train every combination of these values")
    add("--base", help="coco, digits, bccd or a config; required with --table and --grid")
    for name, meaning in _NUMBERS.items():
        add(f"--{name}", type=int, default=1, metavar="N", help=f"{meaning} (default: 1)")
    add_launcher_arguments(parser, "a job per run")
    add("--configs-only", action="store_true", help="write the rows as configs, and run nothing")
    folder = "folder of runs and results (default: output/sweep/ and the name of the base)"
    add_output_argument(parser, folder, required=False, metavar="FOLDER")
    add_json_argument(parser)
    add("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to every config, last")


def _run(args: argparse.Namespace) -> int:
    return_opts(args)
    sweep = read_sweep(tables=args.table, rows_file=args.rows, grid=args.grid, base=args.base)
    output = args.output or Path("output", "sweep", Path(sweep.name).stem)
    configs = load_rows([row for rows in sweep.tables.values() for row in rows], args.opts)
    if args.configs_only:
        for row in configs:
            write_row(row, args.opts, output / f"{row.slug}.yaml")
        print(f"{len(configs)} configs: {output}", file=sys.stderr if args.json else sys.stdout)
        return 0
    launch = make_launcher(args.launcher, args.jobs, args.slurm, output)
    numbers = {"num_seeds": args.seeds, "num_gpus": args.num_gpus}
    runs = make_runs(configs, args.opts, output, **numbers)
    is_complete = execute_sweep(sweep.starts, configs, runs, output, launch)
    results = make_results(sweep, args.command_line, runs)  # also of a sweep in which runs crashed
    for content in results:
        file = output / f"results_{content['table']}.json"
        write_json(file, content)
        write_text(file.with_suffix(".md"), make_results_table(content) + "\n")
        make_results_figure(content).savefig(file.with_suffix(".png"), dpi=110)
        if not args.json:
            title = f"Table {content['table']} on {content['base']}"
            print(f"\n{title}\n\n{make_results_table(content)}\n\nresults: {file}, .md, .png")
    if args.json:
        print(json.dumps(results, indent=1))
    return 0 if is_complete else FAILED


if __name__ == "__main__":
    sys.exit(main())
