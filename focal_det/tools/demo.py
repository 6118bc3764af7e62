"""Draw the detections of a model in images, folders of images and videos."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

import cv2

from focal_det import model_zoo
from focal_det.env import load_config
from focal_det.inference.inputs import find_inputs, split_config_options
from focal_det.inference.predictor import Predictor
from focal_det.report.pictures import Painter, get_frame_rate
from focal_det.tools._program import FAILED, add_output_argument, run_program

_MP4 = cv2.VideoWriter_fourcc(*"mp4v")
_DEFAULT = "digits/focal_retinanet_tiny.yaml"
_EXAMPLE = "focal-det demo photos/ video.mp4 --output output/photos MODEL.DEVICE cpu"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; see `--help`. Returns 1 if an image or video could not be read."""
    return run_program("demo", __doc__, _add_arguments, _run, argv, example=_EXAMPLE)


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    option = parser.add_argument
    what = "images, folders of images and videos; then changes to the config, as KEY VALUE"
    option("inputs", nargs="+", metavar="INPUT", help=what)
    what = "config of the model (default: the digits model that focal_det ships)"
    option("--config-file", metavar="FILE", help=what)
    option("--weights", default="", help="checkpoint (default: MODEL.WEIGHTS of the config)")
    add_output_argument(parser, "folder of the pictures", "output/detections", metavar="FOLDER")
    what = "lowest score drawn (default: %(default)s)"
    option("--score-thresh", type=float, default=0.4, help=what)
    option("--batch", type=int, default=8, help="images at a time (default: %(default)s)")


def _run(args: argparse.Namespace) -> int:
    if args.batch < 1:
        raise ValueError(f"--batch must be >= 1, got {args.batch}")
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
        print(f"neither checkpoint nor data sets have names of {number} classes: they are numbers")
    painter = Painter(predictor, args.score_thresh)
    for file, picture in painter.paint_images(list(inputs.images), args.batch):
        inputs.images[file].parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(inputs.images[file]), picture)
    for file, out_file in inputs.videos.items():
        _write_video(painter, file, out_file, args.batch)
    print(painter.describe_counts())
    print(f"pictures: {args.output.resolve()}")
    for fault in painter.faults:
        print(fault, file=sys.stderr)
    return FAILED if painter.faults else 0


def _draw_pictures(
    detector: Detector, pictures: dict[Path, Path], batch: int, counts: Counter
) -> list[str]:
    """Draw each image to its file; return what is wrong with those that are refused."""
    faults = []
    with tqdm(total=len(pictures), unit="image") as progress:
        for some in _chunk(pictures.items(), batch):
            images = {}
            for file, out_file in some:
                try:
                    images[out_file] = _read_picture(detector, file)
                except ValueError as error:
                    faults.append(str(error))
            for out_file, drawn in zip(
                images, detector.draw(list(images.values()), counts) if images else []
            ):
                out_file.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(out_file), drawn)
            progress.update(len(some))
    return faults


def _draw_video(
    detector: Detector, file: Path, out_file: Path, batch: int, counts: Counter
) -> list[str]:
    """Draw a video to an mp4, a batch of frames in memory at a time; return what is wrong with it."""
    video, writer = cv2.VideoCapture(str(file)), None
    num_frames = int(video.get(cv2.CAP_PROP_FRAME_COUNT))
    with tqdm(total=max(num_frames, 0) or None, unit="frame", desc=file.name) as progress:
        for some in _chunk(_read_frames(video), batch):
            for drawn in detector.draw([detector.convert_frame(x) for x in some], counts):
                if writer is None:
                    out_file.parent.mkdir(parents=True, exist_ok=True)
                    code, rate = cv2.VideoWriter_fourcc(*"mp4v"), video.get(cv2.CAP_PROP_FPS) or 25
                    writer = cv2.VideoWriter(str(out_file), code, rate, drawn.shape[1::-1])
                writer.write(np.ascontiguousarray(drawn))
            progress.update(len(some))
    video.release()
    if writer is None:
        return [_describe_unreadable(file)]
    writer.release()
    return []


def _read_picture(detector: Detector, file: Path) -> np.ndarray:
    """The image as in training; ValueError if `focal-det check` refuses it."""
    try:
        fault = find_value_fault(file)
        image = detector.read(file)
    except Exception:  # Pillow has many ways to say it
        raise ValueError(_describe_unreadable(file)) from None
    if fault:
        rule, place = fault
        raise ValueError(f"{place}: {rule.title} cannot be drawn. {rule.advice}")
    return image


def _describe_unreadable(file: Path) -> str:
    return f"{file} cannot be read: it is damaged, or no image or video that OpenCV knows"


def _read_frames(video: cv2.VideoCapture) -> Iterator[np.ndarray]:
    while True:
        is_frame, frame = video.read()
        if not is_frame:
            return
        yield frame


def _chunk(items: Iterable, size: int) -> Iterator[list]:
    iterator = iter(items)
    while some := list(itertools.islice(iterator, size)):
        yield some


if __name__ == "__main__":
    sys.exit(main())
