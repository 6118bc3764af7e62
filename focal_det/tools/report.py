"""Pictures of a finished run: detections beside ground truth, loss and AP curves; optionally its record."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from detectron2.data import DatasetCatalog, MetadataCatalog

from focal_det.data.catalog import register_datasets
from focal_det.env import load_config
from focal_det.experiments.records import make_record, read_metrics
from focal_det.report.detections import draw_detections
from focal_det.report.training_curves import draw_curves


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; see `--help`."""
    parser = argparse.ArgumentParser(prog="focal-det report", description=__doc__)
    parser.add_argument(
        "run",
        type=Path,
        help="OUTPUT_DIR of a finished training that was evaluated with COCO metrics",
    )
    parser.add_argument(
        "--images", type=int, default=12, help="pictures in the grid (default: %(default)s)"
    )
    parser.add_argument(
        "--score-thresh", type=float, default=0.4, help="lowest score drawn (default: %(default)s)"
    )
    parser.add_argument(
        "--record",
        type=Path,
        metavar="FILE",
        help="also write a json record; do so before you change the code",
    )
    parser.add_argument(
        "--command", metavar="TEXT", help="the command that made the run, for the record"
    )
    args = parser.parse_args(argv)
    if args.record and "--config-file" not in (args.command or ""):
        parser.error("--record needs --command, the whole command with its --config-file")
    results_file = args.run / "inference" / "coco_instances_results.json"
    for file in (args.run / "config.yaml", args.run / "metrics.json", results_file):
        if not file.is_file():
            parser.error(
                f"{file} does not exist: {args.run} is not the OUTPUT_DIR of a run that was evaluated with COCO metrics"
            )

    dataset_name = _read_dataset_name(args.run / "config.yaml")
    draw_curves(read_metrics(args.run / "metrics.json"), args.run / "curves.png")
    figure = draw_detections(
        dataset_name,
        results_file,
        args.run / "detections.png",
        num_images=args.images,
        score_thresh=args.score_thresh,
    )
    if figure.get_suptitle():
        print(figure.get_suptitle())
    if args.record:
        args.record.parent.mkdir(parents=True, exist_ok=True)
        args.record.write_text(
            json.dumps(make_record(args.run, args.command, dataset_name), indent=1) + "\n"
        )
        print(f"record: {args.record}")
    print(
        f"detections.png, curves.png, metrics.json, TensorBoard events and checkpoints are in {args.run.resolve()}"
    )
    return 0


def _read_dataset_name(config_file: Path) -> str:
    """The last test set with COCO metrics of a dumped config, registered; each set's results replace those of the one before."""
    cfg = load_config(config_file)
    register_datasets(cfg.MODEL.FOCAL_DET.DATASETS, source="MODEL.FOCAL_DET.DATASETS")
    for name in cfg.DATASETS.TEST:
        if name not in DatasetCatalog.list():
            raise ValueError(
                f"{config_file}: data set {name} is not registered; does FOCAL_DET_DATASETS name its file?"
            )
    coco_sets = [
        x for x in cfg.DATASETS.TEST if MetadataCatalog.get(x).get("evaluator_type") == "coco"
    ]
    if not coco_sets:
        raise ValueError(
            f"{config_file}: none of DATASETS.TEST {tuple(cfg.DATASETS.TEST)} is evaluated with COCO metrics"
        )
    return coco_sets[-1]


if __name__ == "__main__":
    sys.exit(main())
