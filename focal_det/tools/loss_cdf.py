"""Plot the loss share of the hardest anchors (figure 4 of the paper)."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from tqdm import tqdm

from focal_det.env import load_config
from focal_det.experiments import loss_cdf
from focal_det.experiments.records import make_origin
from focal_det.files import write_json
from focal_det.inference.predictor import load_trained
from focal_det.modeling.stage_outputs import STAGES
from focal_det.report.loss_cdf import make_loss_cdf_figure

from ._arguments import add_config_arguments, add_output_argument, at_least, check_picture_file
from ._program import run_program

_EXAMPLE = "focal-det loss-cdf --config-file my_config.yaml --weights output/model_final.pth"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; see `--help`."""
    return run_program("loss-cdf", __doc__, _add_arguments, _run, argv, example=_EXAMPLE)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    option("--weights", default="", help="checkpoint (default: MODEL.WEIGHTS of the config)")
    what = "a registered data set with annotations (default: the first of DATASETS.TEST)"
    option("--dataset", help=what)
    option("--gammas", type=float, nargs="+", default=[], help="gammas drawn (default: 0 0.5 1 2)")
    what = "further losses, NAME or NAME:ARGUMENT=VALUE,... as for `focal-det curves`"
    option("--losses", nargs="+", default=[], metavar="LOSS", help=what)
    what = (
        "part of a two-stage detector: anchors of its RPN, or proposals of its box head (default)"
    )
    option("--stage", choices=STAGES, help=what)
    what = "one curve per class or object size (of positives), or per pyramid level"
    option("--by", choices=loss_cdf.GROUPINGS, help=what)
    what = "number of images, at even distances; 0 for all (default: %(default)s)"
    option("--images", type=at_least(0), default=0, help=what)
    option("--batch", type=at_least(1), default=4, help="images at a time (default: %(default)s)")
    add_output_argument(parser, "picture to write, and a .json beside it", "output/loss_cdf.png")
    add_config_arguments(parser)


def _run(args: argparse.Namespace) -> None:
    # Measuring takes minutes, so a file name without a known suffix is refused first.
    check_picture_file(args.output)
    cfg = load_config(args.config_file, args.opts)
    stage = loss_cdf.choose_stage(cfg, args.stage)
    losses = loss_cdf.build_losses(cfg, stage, args.gammas, args.losses)
    trained = load_trained(cfg, args.weights)
    dataset = loss_cdf.choose_dataset(cfg, args.dataset)
    batches = loss_cdf.read_batches(cfg, dataset, args.images, args.batch)
    words = {"stage": stage.name, "by": args.by, "class_names": trained.class_names}
    progress = tqdm(batches, unit="batch")
    histograms = loss_cdf.measure_losses(cfg, trained.model, losses, progress, **words)

    num_images = sum(map(len, batches))
    rows = loss_cdf.summarize(histograms)
    print(*map(loss_cdf.describe_row, rows), sep="\n")
    # The device of an origin is "cuda", without the number of "cuda:1".
    content = make_origin(args.command_line, device=cfg.MODEL.DEVICE.partition(":")[0])
    content |= {"config_file": args.config_file, "weights": args.weights or cfg.MODEL.WEIGHTS}
    content |= {"dataset": dataset, "images": num_images, "stage": stage.name or None}
    content |= {"by": args.by, "curves": rows}
    json_file = args.output.with_suffix(".json")
    write_json(json_file, content)
    title = f"Cumulative loss of {Path(args.config_file).stem} on {dataset}, {num_images} images"
    make_loss_cdf_figure(histograms, title, boxes=stage.boxes).savefig(args.output)
    print(f"picture: {args.output}, json: {json_file}")


if __name__ == "__main__":
    sys.exit(main())
