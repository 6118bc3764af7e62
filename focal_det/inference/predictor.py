"""The one way to a trained model: build it, load all its weights, find its class names."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data.detection_utils import convert_PIL_to_numpy, read_image
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_model
from detectron2.structures import Instances
from PIL import Image
from torch import nn

from focal_det.checkpoint.checkpointer import load_all_weights
from focal_det.data.catalog import read_class_names
from focal_det.messages import shorten
from focal_det.modeling.build import read_settings


@dataclass(frozen=True)
class TrainedModel:
    """A model with all its weights, in evaluation mode.

    Attributes:
        model: on the config's device.
        class_names: names of the K classes, from the checkpoint or else from a data set of the
            config; "0" to "K-1" if neither has them.
        has_names: whether `class_names` are more than numbers.
    """

    model: nn.Module
    class_names: Sequence[str]
    has_names: bool


def load_trained(cfg: CfgNode, weights: str = "") -> TrainedModel:
    """Build the model of a config and load trained weights.

    Args:
        cfg: is not changed.
        weights: a file or URL; by default MODEL.WEIGHTS of the config.

    Raises:
        ValueError: no weights are given, or the checkpoint has names of another number of classes.
        FileNotFoundError: the file does not exist.
        WeightsError: the file holds no weights, or not those of all parameters; names it.
    """
    weights = weights or cfg.MODEL.WEIGHTS
    if not weights:
        raise ValueError("no MODEL.WEIGHTS: give a trained checkpoint with --weights")
    # Before the model is built, which takes seconds; a URL is left to the checkpointer.
    if "://" not in weights and not Path(weights).is_file():
        raise FileNotFoundError(f"--weights or MODEL.WEIGHTS: {weights} does not exist")
    model = build_model(cfg).eval()
    checkpoint = load_all_weights(model, weights)
    names = _find_class_names(cfg, weights, checkpoint)
    if names:
        return TrainedModel(model, names, has_names=True)
    # Without names, detections can still be shown with their class ids.
    numbers = [str(i) for i in range(read_settings(cfg).num_classes)]
    return TrainedModel(model, numbers, has_names=False)


def _find_class_names(cfg: CfgNode, weights: str, checkpoint: dict[str, Any]) -> list[str]:
    """Names of the model's classes; empty if neither the checkpoint nor a data set has them."""
    settings = read_settings(cfg)
    trained = [str(x) for x in checkpoint.get("class_names", [])]
    if trained and len(trained) != settings.num_classes:
        raise ValueError(
            f"{weights} has the names of {len(trained)} classes ({shorten(trained, 10)}), but "
            f"{settings.num_classes_key} is {settings.num_classes}. Set it to {len(trained)}."
        )
    if trained:
        return trained
    for dataset in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        names = read_class_names(dataset)
        # Another number of names means that the model was trained on data with other classes.
        if len(names) == settings.num_classes:
            return names
    return []


class Predictor:
    """A trained model with the test-time resizing of its config, on batches of images.

    Args:
        cfg: with MODEL.WEIGHTS, unless `weights` is given; is not changed.
        weights: file or URL to load instead of MODEL.WEIGHTS.
        score_thresh: lowest score of a detection, in [0, 1]; by default that of the config.

    Raises:
        ValueError, FileNotFoundError, WeightsError: see `load_trained`.

    Attributes:
        model, class_names, has_names: see `TrainedModel`.
        input_format: channel order of the images, such as "BGR".
    """

    def __init__(
        self, cfg: CfgNode, weights: str = "", *, score_thresh: Optional[float] = None
    ) -> None:
        if score_thresh is not None:
            # The caller's config keeps its threshold.
            cfg = cfg.clone()
            key = read_settings(cfg).get_key("SCORE_THRESH_TEST")
            cfg.merge_from_list([key, float(score_thresh)])
        trained = load_trained(cfg, weights)
        self.model = trained.model
        self.class_names = trained.class_names
        self.has_names = trained.has_names
        self.input_format = cfg.INPUT.FORMAT
        self._resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)

    def read(self, file: Path) -> np.ndarray:
        """An image as training reads it: (H, W, C) in `input_format`, turned as its EXIF says.

        Raises:
            Exception: Pillow cannot decode the file.
        """
        return read_image(str(file), self.input_format)

    def convert_frame(self, frame: np.ndarray) -> np.ndarray:
        """Convert an (H, W, 3) uint8 BGR frame of a video to `input_format`."""
        return convert_PIL_to_numpy(Image.fromarray(frame[:, :, ::-1]), self.input_format)

    @torch.no_grad()
    def __call__(self, images: Sequence[np.ndarray]) -> list[Instances]:
        """Detections of each image, on the CPU, by falling score.

        Args:
            images: (H, W, C) in `input_format`, of any sizes.

        Returns:
            Per image, `pred_boxes` in its pixels, `scores` and `pred_classes`.
        """
        inputs = []
        for image in images:
            resized = self._resize.get_transform(image).apply_image(image)
            # Resizing may leave negative strides, which torch does not take.
            channels_first = np.ascontiguousarray(resized.transpose(2, 0, 1), dtype=np.float32)
            height, width = image.shape[:2]
            inputs.append(
                {"image": torch.as_tensor(channels_first), "height": height, "width": width}
            )
        return [x["instances"].to("cpu") for x in self.model(inputs)]
