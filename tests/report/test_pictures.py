"""Pictures of detections: drawn, counted, and captioned where nothing is drawn."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances

from focal_det.report.pictures import Painter


class FixedPredictor:
    """Finds one box of class 1, with the score given, in every image."""

    class_names = ("circle", "square")

    def __init__(self, score, input_format="BGR"):
        self.score = score
        self.input_format = input_format
        self.batch_sizes = []

    def read(self, file):
        return cv2.imread(str(file))

    def convert_frame(self, frame):
        return frame

    def __call__(self, images):
        self.batch_sizes.append(len(images))
        boxes = Boxes(torch.tensor([[10.0, 60.0, 40.0, 90.0]]))
        fields = {"scores": torch.tensor([self.score]), "pred_classes": torch.tensor([1])}
        return [Instances(x.shape[:2], pred_boxes=boxes, **fields) for x in images]


@pytest.mark.parametrize(("input_format", "num_channels"), [("BGR", 3), ("RGB", 3), ("L", 1)])
def test_pictures_are_bgr_whatever_is_read(input_format, num_channels):
    image = np.full((120, 80, num_channels), 90, np.uint8)
    (picture,) = Painter(FixedPredictor(0.5, input_format), 0.4).paint([image])
    assert picture.shape == (480, 320, 3)
    assert picture.dtype == np.uint8
    # The second colour of tab10 is orange: more red than blue.
    box = picture[241:360, 41:160].reshape(-1, 3).astype(int)
    assert (box[:, 2] - box[:, 0]).max() > 50


def test_detections_above_the_threshold_are_counted():
    painter = Painter(FixedPredictor(0.5), 0.4)
    painter.paint([np.full((96, 96, 3), 90, np.uint8)] * 3)
    assert painter.describe_counts() == (
        "detections with a score of at least 0.4, by class: square: 3"
    )


def test_pictures_without_detections_show_the_best_score():
    painter = Painter(FixedPredictor(0.25), 0.4)
    (picture,) = painter.paint([np.full((480, 480, 3), 90, np.uint8)])
    changed = (picture != 90).any(axis=2)
    # A caption along the upper edge and nothing else.
    assert changed[:60].sum() > 500
    assert not changed[60:].any()
    assert painter.describe_counts() == (
        "detections with a score of at least 0.4, by class: none\n"
        "no detection with score >= 0.4; best score 0.25"
    )


def test_files_that_cannot_be_read_become_faults(tmp_path):
    files = [tmp_path / f"{i}.png" for i in range(5)]
    for file in files:
        cv2.imwrite(str(file), np.full((96, 96, 3), 90, np.uint8))
    files[1].write_bytes(b"no picture")
    files[4].unlink()
    predictor = FixedPredictor(0.5)
    painter = Painter(predictor, 0.4)
    assert [file for file, _ in painter.paint_images(files, 2)] == [files[0], *files[2:4]]
    # No batch for the last file, which is missing.
    assert predictor.batch_sizes == [1, 2]
    assert [x.split(" cannot be read")[0] for x in painter.faults] == [str(files[1]), str(files[4])]
