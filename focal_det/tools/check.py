"""Check data, config and model before a training: what would stop it or go wrong in silence, with the place and the fix."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Optional

import focal_det.host  # noqa: F401  (first: says how to get Detectron2)

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from focal_det.data.catalog import register_datasets, sample_evenly
from focal_det.data.check_coco import check_coco, fix_coco, read_coco
from focal_det.data.check_images import check_images
from focal_det.data.digits import build_digits
from focal_det.data.findings import SEVERITIES, Findings, shorten
from focal_det.data.voc import read_voc
from focal_det.env import load_config
from focal_det.registry import describe_unknown
from focal_det.tools._check_config import check_config

_COLORS = {"error": "\033[31m", "warning": "\033[33m", "note": "\033[36m"}
_END = "\033[0m"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; see `--help`. Returns 0 if all is well, 1 with warnings, 2 with errors."""
    parser = argparse.ArgumentParser(prog="focal-det check", description=__doc__)
    parser.add_argument("--config-file", required=True, help="config of the training")
    parser.add_argument("--images", type=int, default=0, metavar="N", help="decode N images of each data set (default: all)")
    parser.add_argument("--json", action="store_true", help="print the findings as json")
    parser.add_argument("--fix", type=Path, metavar="OUT", help="write a corrected copy of a COCO json; needs --dataset")
    parser.add_argument("--dataset", help="check this data set only (default: those of DATASETS.TRAIN and TEST)")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values, last")
    args = parser.parse_args(argv)
    if args.fix and not args.dataset:
        parser.error("--fix needs --dataset, the data set whose json is to be corrected")
    if args.images < 0:
        parser.error(f"--images must be >= 0, got {args.images}")
    try:
        findings = run_checks(load_config(args.config_file, args.opts), images=args.images, dataset=args.dataset)
    except (OSError, KeyError, ValueError, AssertionError) as error:
        parser.error(str(error.args[0]))
    if args.fix:
        _write_fixed(args.dataset, args.fix, parser)
    if args.json:
        print(json.dumps([x.to_json() for x in findings], indent=1))
    else:
        print_findings(findings)
    return findings.exit_code


def run_checks(cfg: CfgNode, *, images: int = 0, dataset: Optional[str] = None) -> Findings:
    """Check a config and its data sets.

    Args:
        images: how many of each data set to decode, at even distances; 0 for all.
        dataset: check this data set, instead of those of the config.

    Raises:
        ValueError: an entry of MODEL.FOCAL_DET.DATASETS that is not valid, or an unknown `dataset`.
    """
    findings = Findings()
    register_datasets(cfg.MODEL.FOCAL_DET.DATASETS, source="MODEL.FOCAL_DET.DATASETS")
    if dataset and dataset not in DatasetCatalog.list():
        raise ValueError(f"--dataset: {describe_unknown('data set', dataset, DatasetCatalog.list())}")
    check_config(cfg, findings)
    for name in [dataset] if dataset else dict.fromkeys((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)):
        if name in DatasetCatalog.list():
            check_images(sample_evenly(check_dataset(name, cfg.MODEL.RETINANET.NUM_CLASSES, findings), images), findings)
    return findings


def check_dataset(name: str, num_classes: int, findings: Findings) -> list[dict[str, Any]]:
    """Check the annotations of a registered data set; return what there is to know of its images, for `check_images`."""
    metadata = MetadataCatalog.get(name)
    spec = metadata.get("focal_det_spec", {})
    if spec.get("format") == "digits":
        build_digits(spec["split"])
    if metadata.get("json_file"):
        records, classes = _check_json(Path(metadata.json_file), Path(metadata.get("image_root", "")), findings)
    else:
        records, classes = _read_records(name, spec, findings), metadata.get("thing_classes", [])
    if classes and len(classes) != num_classes:
        advice = f"Set MODEL.RETINANET.NUM_CLASSES to {len(classes)}; background is not counted."
        place = f"{name} has {len(classes)} ({shorten(classes)}), MODEL.RETINANET.NUM_CLASSES is {num_classes}"
        findings.add("error", "data sets with another number of classes than the model", advice, place)
    return records


def _check_json(file: Path, image_root: Path, findings: Findings) -> tuple[list[dict[str, Any]], list[str]]:
    """The images of a COCO json with their whole paths, and its classes."""
    if not file.is_file():
        findings.add("error", "annotation files that do not exist", "Put them there, or correct the path.", str(file))
        return [], []
    content = read_coco(file, findings)
    if content is None:
        return [], []
    check_coco(content, file, findings)
    images = [{**x, "file_name": str(image_root / x["file_name"])} for x in content["images"] if "file_name" in x]
    return images, [str(x.get("name")) for x in content["categories"]]


def _read_records(name: str, spec: dict[str, Any], findings: Findings) -> list[dict[str, Any]]:
    """The dicts of a data set without a json: a VOC folder, or one registered by code."""
    try:
        if spec.get("format") != "voc":
            return DatasetCatalog.get(name)
        records, without_area = read_voc(Path(spec["root"]), spec["split"], spec["classes"], name)
    except (ValueError, OSError) as error:
        findings.add("error", "data sets that cannot be read", "Correct what it says.", str(error))
        return []
    for box in without_area:
        findings.add("warning", "boxes without area", "They are left out. Correct the annotations.", f"{name}: {box}")
    return records


def _write_fixed(name: str, out_file: Path, parser: argparse.ArgumentParser) -> None:
    file = Path(MetadataCatalog.get(name).get("json_file", ""))
    if not file.is_file():
        parser.error(f"--fix: {name} has no COCO json")
    if out_file.resolve() == file.resolve():
        parser.error(f"--fix: {out_file} is the original; write to another file")
    content = read_coco(file, Findings())
    if content is None:
        parser.error(f"--fix: {file} cannot be read")
    fixed, changes = fix_coco(content)
    out_file.parent.mkdir(parents=True, exist_ok=True)
    out_file.write_text(json.dumps(fixed))
    print(f"{out_file}: " + ("; ".join(changes) or "nothing to correct"), file=sys.stderr)


def print_findings(findings: Findings) -> None:
    """Print each finding, errors first, in colours on a terminal."""
    for finding in findings:
        head = f"{finding.severity:<8}"
        print(f"{_COLORS[finding.severity]}{head}{_END}{finding}" if sys.stdout.isatty() else f"{head}{finding}")
    errors, warnings, notes = (len(findings.get(x)) for x in SEVERITIES)
    if errors or warnings or notes:
        print(f"\n{errors} kinds of errors, {warnings} of warnings, {notes} notes")
    else:
        print("nothing found; all is well")


if __name__ == "__main__":
    sys.exit(main())
