"""Draw the detections of a model in images, folders of images and videos.

Exit codes: 0 done, 1 an input was not read, 2 refused, 3 a bug in focal_det, 130 interrupted."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from focal_det import model_zoo
from focal_det.env import load_config
from focal_det.inference.inputs import find_inputs, split_config_options
from focal_det.inference.predictor import Predictor
from focal_det.report.pictures import Painter, get_frame_rate, open_video, write_picture

from ._arguments import add_output_argument, at_least
from ._program import FAILED, run_program

_DEFAULT = "digits/focal_retinanet_tiny.yaml"
_EXAMPLE = "focal-det demo photos/ video.mp4 --output output MODEL.DEVICE cpu"


def main(argv: Optional[Sequence[str]] = None) -> int:
    return run_program("demo", __doc__, _add_arguments, _run, argv, example=_EXAMPLE)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    what = "images, folders of images and videos; then changes to the config, as KEY VALUE"
    option("inputs", nargs="+", metavar="INPUT", help=what)
    what = "config of the model (default: the digits model that focal_det ships)"
    option("--config-file", metavar="FILE", help=what)
    option("--weights", default="", help="checkpoint (default: MODEL.WEIGHTS of the config)")
    add_output_argument(parser, "folder of the pictures", "output/detections", metavar="FOLDER")
    what = "lowest score to draw (default: %(default)s)"
    option("--score-thresh", type=float, default=0.4, help=what)
    option("--batch", type=at_least(1), default=8, help="images at a time (default: %(default)s)")


def _run(args: argparse.Namespace) -> int:
    if not 0 <= args.score_thresh <= 1:
        raise ValueError(f"--score-thresh must be in [0, 1], got {args.score_thresh:g}")
    words, opts = split_config_options(args.inputs)
    inputs = find_inputs(map(Path, words), args.output)
    cfg = load_config(args.config_file or _DEFAULT, opts)
    if args.config_file is None and "MODEL.WEIGHTS" not in opts:
        cfg.MODEL.WEIGHTS = model_zoo.get_checkpoint_url(_DEFAULT)
    predictor = Predictor(cfg, args.weights, score_thresh=0.0)
    if not predictor.has_names:
        number = len(predictor.class_names)
        print(f"neither checkpoint nor data sets name the {number} classes; their ids are shown")
    painter = Painter(predictor, args.score_thresh)
    for file, picture in painter.paint_images(list(inputs.images), args.batch):
        write_picture(inputs.images[file], picture)
    for file, out_file in inputs.videos.items():
        _write_video(painter, file, out_file, args.batch)
    print(painter.describe_counts())
    total = len(inputs.images) + len(inputs.videos)
    done = total - len(painter.faults)
    print(f"pictures of {done} of {total} files: {args.output.resolve()}")
    for fault in painter.faults:
        print(fault, file=sys.stderr)
    return FAILED if painter.faults else 0


def _write_video(painter: Painter, file: Path, out_file: Path, batch: int) -> None:
    writer = None
    for picture in painter.paint_video(file, batch):
        # The first picture gives the size of the video.
        if writer is None:
            writer = open_video(out_file, get_frame_rate(file), picture)
        writer.write(picture)


if __name__ == "__main__":
    sys.exit(main())
