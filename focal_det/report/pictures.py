"""Pictures of the detections of a trained model in images and videos."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from detectron2.data.detection_utils import convert_image_to_rgb
from detectron2.structures import Instances
from tqdm import tqdm

from focal_det.check.images import find_value_fault
from focal_det.inference.inputs import read_frames
from focal_det.inference.predictor import Predictor

from .detections import describe_absence, draw_boxes

_MIN_SIDE = 480  # pixels of the longer side of a picture, so that labels can be read
_FRAME_RATE = 25.0  # per second, of a video that does not say
_MP4 = cv2.VideoWriter.fourcc(*"mp4v")


class Painter:
    """Draws the detections of a predictor and counts them.

    Args:
        predictor: with a score threshold of 0, as pictures without detections show the best score.
        score_thresh: detections below this score are not drawn.

    Attributes:
        counts: detections drawn so far, by class name.
        best_scores: the best score of each image so far that has any detection.
        faults: one line for each file so far that could not be read.
    """

    def __init__(self, predictor: Predictor, score_thresh: float) -> None:
        self.predictor = predictor
        self.score_thresh = score_thresh
        self.counts: Counter = Counter()
        self.best_scores: list[float] = []
        self.faults: list[str] = []

    def paint(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """BGR pictures of (H, W, C) images in the predictor's format."""
        return [self._paint(*pair) for pair in zip(images, self.predictor(images))]

    def _paint(self, image: np.ndarray, found: Instances) -> np.ndarray:
        # Detectron2 sorts detections by score.
        self.best_scores += found.scores[:1].tolist()
        caption = describe_absence(found.scores.tolist(), self.score_thresh)
        drawn = found[found.scores >= self.score_thresh]
        class_names = self.predictor.class_names
        self.counts.update(class_names[i] for i in drawn.pred_classes.tolist())
        picture = draw_boxes(
            convert_image_to_rgb(image, self.predictor.input_format),
            drawn.pred_boxes.tensor,
            drawn.pred_classes,
            class_names=class_names,
            scores=drawn.scores,
            scale=max(1.0, _MIN_SIDE / max(image.shape[:2])),
            caption=caption,
        )
        # OpenCV's writers take BGR.
        return np.ascontiguousarray(picture[:, :, ::-1])

    def paint_images(
        self, files: Sequence[Path], batch_size: int
    ) -> Iterator[tuple[Path, np.ndarray]]:
        """Each image file that can be read, with its BGR picture; the others become faults."""
        with tqdm(total=len(files), unit="image") as progress:
            for some in _make_batches(files, batch_size):
                images = {}
                for file in some:
                    try:
                        images[file] = self._read(file)
                    except ValueError as error:
                        self.faults.append(str(error))
                # A detector does not take an empty batch.
                if images:
                    yield from zip(images, self.paint(list(images.values())))
                progress.update(len(some))

    def paint_video(self, file: Path, batch_size: int) -> Iterator[np.ndarray]:
        """BGR pictures of the frames of a video; a video without frames becomes a fault.

        At most `batch_size` frames are in memory.
        """
        video = cv2.VideoCapture(str(file))
        # OpenCV gives a negative number where the file does not say.
        num_frames = max(0, int(video.get(cv2.CAP_PROP_FRAME_COUNT)))
        num_painted = 0
        with tqdm(total=num_frames or None, unit="frame", desc=file.name) as progress:
            for some in _make_batches(read_frames(video), batch_size):
                yield from self.paint([self.predictor.convert_frame(x) for x in some])
                num_painted += len(some)
                progress.update(len(some))
        video.release()
        if num_painted == 0:
            self.faults.append(_describe_unreadable(file))

    def describe_counts(self) -> str:
        """How often each class was drawn; if nothing was, the best score, in a second line."""
        counts = ", ".join(f"{name}: {count}" for name, count in self.counts.most_common())
        text = f"detections with a score of at least {self.score_thresh}, by class: "
        if counts:
            return text + counts
        return f"{text}none\n{describe_absence(self.best_scores, self.score_thresh)}"

    def _read(self, file: Path) -> np.ndarray:
        """The image as training reads it; ValueError for one that `focal-det check` refuses."""
        try:
            fault = find_value_fault(file)
            image = self.predictor.read(file)
        except Exception:  # Pillow raises errors of many kinds
            raise ValueError(_describe_unreadable(file)) from None
        if fault:
            rule, place = fault
            raise ValueError(f"{place}: {rule.title} cannot be drawn. {rule.advice}")
        return image


def write_picture(file: Path, picture: np.ndarray) -> None:
    """Write a BGR picture in the format of the file's suffix; a missing folder is made.

    Raises:
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(file), picture):
        raise OSError(f"{file} cannot be written")


def open_video(file: Path, rate: float, picture: np.ndarray) -> cv2.VideoWriter:
    """Open an .mp4 file for pictures of the size of `picture`; a missing folder is made.

    Args:
        rate: frames per second.

    Raises:
        OSError: it cannot be written.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    writer = cv2.VideoWriter(str(file), _MP4, rate, picture.shape[1::-1])
    if not writer.isOpened():
        raise OSError(f"{file} cannot be written")
    return writer


def get_frame_rate(file: Path) -> float:
    """Frames per second of a video."""
    video = cv2.VideoCapture(str(file))
    rate = video.get(cv2.CAP_PROP_FPS)
    video.release()
    return rate or _FRAME_RATE


def _describe_unreadable(file: Path) -> str:
    return f"{file} cannot be read: it is damaged, or not an image or video that OpenCV knows"


def _make_batches(items: Iterable, size: int) -> Iterator[list]:
    """Lists of `size` items; the last may be shorter."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
