"""Check data, config and model before a training: what would stop it or go wrong in silence, with the place and the fix."""

import argparse
import html
import json
import shutil
import sys
import textwrap
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog

from focal_det.check.datasets import write_fixed
from focal_det.check.findings import SEVERITIES, Finding, Findings
from focal_det.check.run import LABELLED_IMAGES, run_checks
from focal_det.config import find_config_file
from focal_det.env import load_config
from focal_det.imbalance.config_file import warn_unread, write_suggestion
from focal_det.imbalance.describe import describe
from focal_det.imbalance.measure import TrainingSetReport, to_json
from focal_det.messages import describe_error
from focal_det.report.anchors import make_anchor_figure
from focal_det.report.class_weights import make_class_weights_figure
from focal_det.report.detections import make_ground_truth_figure

_COLORS = {"error": "\033[31m", "warning": "\033[33m", "note": "\033[36m"}
_END = "\033[0m"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; see `--help`. Returns 0 if all is well, 1 with warnings, 2 with errors, 3 if it fails itself."""
    parser = argparse.ArgumentParser(prog="focal-det check", description=__doc__)
    parser.add_argument("--config-file", type=Path, required=True, help="config of the training")
    parser.add_argument(
        "--images",
        type=int,
        default=0,
        metavar="N",
        help="decode N images of each data set (default: all) and look at the anchors of at most N "
        f"(default: {LABELLED_IMAGES})",
    )
    parser.add_argument("--json", action="store_true", help="print findings and figures as json")
    parser.add_argument(
        "--write",
        type=Path,
        metavar="Y.yaml",
        help="write a config with anchors that fit, pi and alpha per class",
    )
    parser.add_argument(
        "--report", type=Path, metavar="DIR", help="write a page with pictures: DIR/index.html"
    )
    parser.add_argument(
        "--fix",
        type=Path,
        metavar="OUT.json",
        help="write a corrected copy of a COCO json; needs --dataset",
    )
    parser.add_argument(
        "--dataset", help="check this data set only (default: those of DATASETS.TRAIN and TEST)"
    )
    parser.add_argument(
        "--unsafe-yaml",
        action="store_true",
        help="let the config run code (!!python/...) when it is read",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the config, last"
    )
    args = parser.parse_args(argv)
    if args.fix and not args.dataset:
        parser.error("--fix needs --dataset, the data set whose json is to be corrected")
    if args.images < 0:
        parser.error(f"--images must be >= 0, got {args.images}")
    try:
        args.config_file = Path(find_config_file(args.config_file))
        cfg = _load_config(args)
    except (OSError, KeyError, ValueError, AssertionError) as error:
        parser.error(describe_error(error))
    try:
        return _run(cfg, args)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    except Exception:
        traceback.print_exc()
        print("focal-det check itself has failed, which is a fault of its own", file=sys.stderr)
        return 3


def _load_config(args: argparse.Namespace) -> CfgNode:
    """The config; a wrong block of FOCAL_DET_DATASETS is ignored if --dataset names another one."""
    try:
        return load_config(args.config_file, args.opts, unsafe_yaml=args.unsafe_yaml)
    except (OSError, ValueError):
        if args.dataset not in DatasetCatalog.list():
            raise
    return load_config(args.config_file, args.opts, unsafe_yaml=args.unsafe_yaml)


def _run(cfg: CfgNode, args: argparse.Namespace) -> int:
    findings = Findings()
    words = {"images": args.images, "dataset": args.dataset}
    try:
        _, report = run_checks(cfg, **words, suggest=True, findings=findings)
    except KeyboardInterrupt:
        if args.report:
            advice = "The rest was not checked: run it again."
            findings.add("warning", "checks that were interrupted", advice, str(args.config_file))
            _write_page(args.report, args.config_file, findings, None)
            print(f"\npage:    {args.report / 'index.html'}", file=sys.stderr)
        raise
    if report and args.write:
        write_suggestion(report, cfg, args.config_file, args.opts, args.write)
        warn_unread(cfg)
    if args.report:
        _write_page(args.report, args.config_file, findings, report)
    if args.json:
        figures = to_json(report) if report else None
        print(
            json.dumps(
                {"findings": [x.to_json() for x in findings], "training_set": figures}, indent=1
            )
        )
    else:
        _print_all(findings, report, args)
    if args.fix:
        fixed = write_fixed(args.dataset, args.fix)
        print(f"corrected copy, to be checked in its place: {args.fix}\n  {fixed}", file=sys.stderr)
    return findings.exit_code


def print_findings(findings: Findings) -> None:
    """Print each finding, errors first: in paragraphs with colours on a terminal, else in a line."""
    indent, unbroken = (
        " " * 8,
        {"break_on_hyphens": False, "break_long_words": False},
    )  # paths can be copied
    wrapper = textwrap.TextWrapper(
        shutil.get_terminal_size().columns, indent, indent + "  ", **unbroken
    )
    for finding in findings:
        if not sys.stdout.isatty():
            print(f"{finding.severity:<8}{finding}")
            continue
        print(f"{_COLORS[finding.severity]}{finding.severity:<8}{_END}{finding.title}")
        for line in filter(None, [*(f"- {x}" for x in finding.shown), finding.advice]):
            print(wrapper.fill(line))
    print(_summarize(findings))


def _summarize(findings: Findings) -> str:
    numbers = [(x, len(findings.get(x))) for x in SEVERITIES]
    return ", ".join(
        f"{number or 'no'} {severity}{'' if number == 1 else 's'}" for severity, number in numbers
    )


def _print_all(
    findings: Findings, report: Optional[TrainingSetReport], args: argparse.Namespace
) -> None:
    if report:
        print("\n".join(describe(report)), end="\n\n")
    print_findings(findings)
    if findings.get("error") and not args.dataset:
        not_written = f"; {args.write} is not written" if args.write else ""
        print(
            f"anchors and balance of the training set are looked at when there are no errors{not_written}"
        )
    if args.write and report:
        print(f"config:  {args.write}")
    if args.report:
        print(f"page:    {args.report / 'index.html'}")


def draw_fits(report: TrainingSetReport, file: Path) -> None:
    fits = {"now": report.fit}
    if report.fit_after:
        fits["suggested"] = report.fit_after
    make_anchor_figure(fits, report.weights.labels, report.level_names).savefig(file)


def _to_html(finding: Finding) -> str:
    places = "".join(f"<li>{html.escape(x)}</li>" for x in finding.shown)
    return f"{html.escape(finding.title)}<ul>{places}</ul>{html.escape(finding.advice)}"


def _write_page(
    folder: Path, config_file: Path, findings: Findings, report: Optional[TrainingSetReport]
) -> None:
    """A page of what was found, with pictures of the training set."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, str] = {}
    lines: list[str] = []
    if report:
        draw_fits(report, folder / "anchors.png")
        title = "objects, and alpha and pi per class"
        make_class_weights_figure(report.weights, title).savefig(folder / "classes.png")
        make_ground_truth_figure(report.sample, report.class_names).savefig(folder / "images.png")
        pictures = {
            "images.png": "images with their boxes",
            "anchors.png": "anchors",
            "classes.png": "classes",
        }
        lines = describe(report)
    rows = "".join(
        f"<tr class={x.severity}><td>{x.severity}<td>{_to_html(x)}</tr>\n" for x in findings
    )
    images = "".join(f'<p><img src="{file}" alt="{what}"></p>\n' for file, what in pictures.items())
    style = "body{font:15px sans-serif;max-width:1300px;margin:2em auto} td{vertical-align:top;padding:.3em .8em}"
    style += (
        " .error{color:#b00} .warning{color:#a60} img{max-width:100%} pre{white-space:pre-wrap}"
    )
    text = html.escape("\n".join(lines))
    page = f"<!doctype html><meta charset=utf-8><title>{html.escape(config_file.name)}</title><style>{style}</style>\n"
    page += f"<h1>{html.escape(str(config_file))}</h1>\n<p>{_summarize(findings)}</p>\n<table>{rows}</table>\n<pre>{text}</pre>\n"
    (folder / "index.html").write_text(page + images, encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
