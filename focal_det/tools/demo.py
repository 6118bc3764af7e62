"""Draw the detections of a model in images, folders of images and videos."""

import argparse
import itertools
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import (
    convert_image_to_rgb,
    convert_PIL_to_numpy,
    read_image,
)
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_model
from detectron2.structures import Instances
from PIL import Image
from torch import nn
from tqdm import tqdm

from focal_det import model_zoo
from focal_det.check.images import find_value_fault
from focal_det.checkpoint.checkpointer import load_all_weights
from focal_det.data.catalog import read_class_names
from focal_det.env import load_config
from focal_det.messages import describe_error
from focal_det.modeling.build import read_settings
from focal_det.report.detections import describe_absence, draw_boxes

_IMAGES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
_VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".webm")
_MIN_SIDE = 480  # pixels that the longer side of a picture has at least, to be read
_DEFAULT = "digits/focal_retinanet_tiny.yaml"


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; see `--help`. Returns 1 if an image or video could not be read."""
    parser = argparse.ArgumentParser(prog="focal-det demo", description=__doc__)
    parser.add_argument(
        "inputs", nargs="+", type=Path, metavar="INPUT", help="image, folder of images, or video"
    )
    parser.add_argument(
        "--config-file",
        type=Path,
        help="config of the model (default: the digits model that ships with focal_det)",
    )
    parser.add_argument("--weights", help="checkpoint (default: MODEL.WEIGHTS of the config)")
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("output/detections"),
        metavar="FOLDER",
        help="(default: %(default)s)",
    )
    parser.add_argument(
        "--score-thresh", type=float, default=0.4, help="lowest score drawn (default: %(default)s)"
    )
    parser.add_argument(
        "--batch", type=int, default=8, help="images at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--opts",
        nargs="+",
        default=[],
        metavar="KEY VALUE",
        help="config keys, such as MODEL.DEVICE cpu",
    )
    args = parser.parse_args(argv)
    if args.batch < 1 or not 0 <= args.score_thresh <= 1:
        parser.error(
            f"--batch must be >= 1 and --score-thresh in [0, 1], got {args.batch} and {args.score_thresh}"
        )
    try:
        pictures, videos = _find_inputs(args.inputs, args.output)
        detector = Detector(_load_config(args), args.score_thresh)
    except (ValueError, KeyError, FileNotFoundError) as error:
        parser.error(describe_error(error))
    if not detector.has_names:
        num_classes = len(detector.class_names)
        print(
            f"neither the checkpoint nor a data set has names of {num_classes} classes: "
            "numbers stand for them"
        )
    counts, faults = Counter(), []
    if pictures:
        faults += _draw_pictures(detector, pictures, args.batch, counts)
    for file, out_file in videos.items():
        faults += _draw_video(detector, file, out_file, args.batch, counts)
    found = ", ".join(f"{name}: {count}" for name, count in counts.most_common()) or "none"
    print(f"detections with a score of at least {args.score_thresh}, by class: {found}")
    if not counts:
        print(describe_absence(detector.best_scores, args.score_thresh))
    print(f"pictures: {args.output.resolve()}")
    for fault in faults:
        print(fault, file=sys.stderr)
    return int(bool(faults))


class Detector:
    """A model with its test-time resizing, on batches of images as `read` returns them.

    Args:
        cfg: with MODEL.WEIGHTS.
        score_thresh: lowest score returned.

    Raises:
        ValueError: the checkpoint has names of another number of classes.

    Attributes:
        class_names: of the checkpoint, or else of the data set, or else numbers.
        has_names: whether they are not numbers.
        best_scores: the best score of each image drawn so far that has any detection.
    """

    def __init__(self, cfg: CfgNode, score_thresh: float) -> None:
        self.model: nn.Module = build_model(cfg).eval()
        checkpoint = load_all_weights(self.model, cfg.MODEL.WEIGHTS)
        self.resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
        self.input_format = cfg.INPUT.FORMAT
        self.score_thresh = score_thresh
        self.best_scores: list[float] = []
        names = _find_class_names(cfg, checkpoint)
        self.has_names = bool(names)
        self.class_names = names or [str(i) for i in range(read_settings(cfg).num_classes)]

    def read(self, file: Path) -> np.ndarray:
        """An image as training reads it: (H, W, C) in INPUT.FORMAT, turned as its EXIF says.

        Raises:
            Exception: of Pillow; the file cannot be decoded.
        """
        return read_image(str(file), self.input_format)

    def convert_frame(self, frame: np.ndarray) -> np.ndarray:
        """An (H, W, 3) uint8 BGR frame of a video in INPUT.FORMAT."""
        return convert_PIL_to_numpy(Image.fromarray(frame[:, :, ::-1]), self.input_format)

    def detect(self, images: Sequence[np.ndarray]) -> list[Instances]:
        """Detections above the threshold, on the CPU, of images in INPUT.FORMAT."""
        return [x[x.scores >= self.score_thresh] for x in self._detect_all(images)]

    @torch.no_grad()
    def _detect_all(self, images: Sequence[np.ndarray]) -> list[Instances]:
        inputs = []
        for image in images:
            resized = self.resize.get_transform(image).apply_image(image)
            tensor = torch.as_tensor(
                np.ascontiguousarray(resized.transpose(2, 0, 1), dtype=np.float32)
            )
            inputs.append({"image": tensor, "height": image.shape[0], "width": image.shape[1]})
        return [x["instances"].to("cpu") for x in self.model(inputs)]

    def draw(self, images: Sequence[np.ndarray], counts: Counter) -> list[np.ndarray]:
        """BGR pictures of images and their detections, which are counted by class name."""
        return [
            self._draw(image, found, counts)
            for image, found in zip(images, self._detect_all(images))
        ]

    def _draw(self, image: np.ndarray, found: Instances, counts: Counter) -> np.ndarray:
        self.best_scores += found.scores[:1].tolist()  # they fall
        caption = describe_absence(found.scores.tolist(), self.score_thresh)
        found = found[found.scores >= self.score_thresh]
        counts.update(self.class_names[i] for i in found.pred_classes.tolist())
        picture = draw_boxes(
            convert_image_to_rgb(image, self.input_format),
            found.pred_boxes.tensor,
            found.pred_classes,
            class_names=self.class_names,
            scores=found.scores,
            scale=max(1.0, _MIN_SIDE / max(image.shape[:2])),
            caption=caption,
        )
        return picture[:, :, ::-1]


def _find_class_names(cfg: CfgNode, checkpoint: dict[str, Any]) -> list[str]:
    """Names of the model's classes; none if neither checkpoint nor data sets have as many."""
    num_classes = read_settings(cfg).num_classes
    trained = [str(x) for x in checkpoint.get("class_names", [])]
    if trained and len(trained) != num_classes:
        raise ValueError(
            f"{cfg.MODEL.WEIGHTS} has the names of {len(trained)} classes "
            f"({', '.join(trained[:10])}), but {read_settings(cfg).num_classes_key} is {num_classes}. "
            f"Set it to {len(trained)}."
        )
    # Names of another data set than the model was trained on would be wrong.
    of_sets = map(read_class_names, (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN))
    return trained or next((x for x in of_sets if len(x) == num_classes), [])


def _find_inputs(inputs: Iterable[Path], output: Path) -> tuple[dict[Path, Path], dict[Path, Path]]:
    """Images and videos with the file that each is drawn to; those of a folder keep their names below its name."""
    pictures: dict[Path, Path] = {}
    videos: dict[Path, Path] = {}
    for path in inputs:
        if path.is_dir():
            files = sorted(x for x in path.rglob("*") if x.suffix.lower() in _IMAGES)
            if not files:
                raise ValueError(f"{path} has no image ({', '.join(_IMAGES)})")
            pictures.update((x, output / path.resolve().name / x.relative_to(path)) for x in files)
        elif not path.is_file():
            raise FileNotFoundError(f"{path} does not exist")
        elif path.suffix.lower() in _VIDEOS:
            videos[path] = output / f"{path.stem}.mp4"
        elif path.suffix.lower() in _IMAGES:
            pictures[path] = output / path.name
        else:
            raise ValueError(
                f"{path} is no image ({', '.join(_IMAGES)}) and no video ({', '.join(_VIDEOS)})"
            )
    drawn_from: dict[Path, Path] = {}
    for file, out_file in {**pictures, **videos}.items():
        first = drawn_from.setdefault(out_file, file)
        if first != file:
            raise ValueError(
                f"{first} and {file} would both be drawn to {out_file}; give them in two calls with an --output each"
            )
        if file.resolve() == out_file.resolve():
            raise ValueError(f"{file} would be overwritten; choose another --output")
    return pictures, videos


def _load_config(args: argparse.Namespace) -> CfgNode:
    cfg = load_config(args.config_file or model_zoo.get_config_file(_DEFAULT), args.opts)
    if args.config_file is None:
        cfg.MODEL.WEIGHTS = model_zoo.get_checkpoint_url(_DEFAULT)
    cfg.MODEL.WEIGHTS = args.weights or cfg.MODEL.WEIGHTS
    cfg.merge_from_list(
        [read_settings(cfg).get_key("SCORE_THRESH_TEST"), 0.0]
    )  # the best score is shown where none is drawn
    if not cfg.MODEL.WEIGHTS:
        raise ValueError(
            f"{args.config_file} names no MODEL.WEIGHTS; give the checkpoint of a training with --weights"
        )
    if "://" not in cfg.MODEL.WEIGHTS and not Path(cfg.MODEL.WEIGHTS).is_file():
        raise FileNotFoundError(f"--weights {cfg.MODEL.WEIGHTS} does not exist")
    return cfg


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
        _, kind, advice, place = fault
        raise ValueError(f"{place}: {kind} cannot be drawn. {advice}")
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
