"""`focal-det demo`: the shipped model finds digits in pictures, folders and videos, and what is wrong is named."""

import re

import cv2
import numpy as np
import pytest

from focal_det.data.digits import build_digits, get_digits_root
from focal_det.tools.demo import Detector, _load_config, main
from tests.conftest import assert_same_detections


@pytest.fixture(scope="module")
def pictures():
    """BGR pictures of digits_val and their annotations: lists of (class, XYWH)."""
    from detectron2.data import DatasetCatalog

    build_digits("val")
    assert get_digits_root().is_dir()
    return DatasetCatalog.get("digits_val")[:4]


@pytest.fixture
def folder(pictures, tmp_path):
    (tmp_path / "in").mkdir()
    for record in pictures:
        image = cv2.imread(record["file_name"])
        cv2.imwrite(str(tmp_path / "in" / f"{record['image_id']}.png"), image)
    return tmp_path / "in"


def make_args(**changes):
    import argparse

    return argparse.Namespace(
        **{"config_file": None, "weights": None, "opts": [], "score_thresh": 0.4, **changes}
    )


def test_the_shipped_model_finds_the_digits(pictures):
    """Each confident detection has a digit of its class where it says; most digits are found."""
    detector = Detector(_load_config(make_args()), 0.6)
    hits, num_detections = 0, 0
    for record in pictures:
        (found,) = detector.detect([cv2.imread(record["file_name"])])
        for box, label in zip(found.pred_boxes.tensor.tolist(), found.pred_classes.tolist()):
            num_detections += 1
            for x in record["annotations"]:
                x0, y0, w, h = x["bbox"]
                want = np.array([x0, y0, x0 + w, y0 + h])
                hits += x["category_id"] == label and np.abs(np.array(box) - want).max() < 8
    assert num_detections >= 4 and hits >= 0.6 * num_detections


def test_a_folder_is_drawn_picture_by_picture(folder, tmp_path, capsys):
    assert main([str(folder), "--output", str(tmp_path / "out"), "--batch", "3"]) == 0
    names = sorted(x.name for x in folder.iterdir())
    assert sorted(x.name for x in (tmp_path / "out" / "in").iterdir()) == names
    image, drawn = (cv2.imread(str(x / names[0])) for x in (folder, tmp_path / "out" / "in"))
    assert (
        max(drawn.shape) == 480
        and np.abs(cv2.resize(image, drawn.shape[1::-1]).astype(int) - drawn).max() > 100
    )
    assert "by class: " in capsys.readouterr().out


def test_a_picture_without_detections_shows_the_best_score(folder, tmp_path, capsys):
    file = next(folder.iterdir())
    assert main([str(file), "--output", str(tmp_path), "--score-thresh", "1"]) == 0
    output = capsys.readouterr().out
    best = float(re.search(r"no detection with score >= 1; best score (0\.\d+)\n", output)[1])
    assert 0.4 < best < 1
    image, drawn = cv2.imread(str(file)), cv2.imread(str(tmp_path / file.name))
    changed = np.abs(cv2.resize(image, drawn.shape[1::-1]).astype(int) - drawn).max(axis=2) > 100
    # A caption along the upper edge and nothing else.
    assert changed[:60].sum() > 500 and not changed[60:].any()


def test_batches_have_the_detections_of_single_pictures(pictures):
    detector = Detector(_load_config(make_args()), 0.3)
    images = [cv2.imread(x["file_name"]) for x in pictures]
    for together, image in zip(detector.detect(images), images):
        (alone,) = detector.detect([image])
        assert_same_detections(together, alone)


def test_a_video_has_as_many_frames_after_as_before(folder, tmp_path):
    frame = cv2.imread(str(next(folder.iterdir())))
    writer = cv2.VideoWriter(
        str(tmp_path / "v.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, frame.shape[1::-1]
    )
    for _ in range(5):
        writer.write(frame)
    writer.release()
    assert main([str(tmp_path / "v.avi"), "--output", str(tmp_path / "out"), "--batch", "2"]) == 0
    video = cv2.VideoCapture(str(tmp_path / "out" / "v.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 5 and video.get(cv2.CAP_PROP_FPS) == 10


def test_what_cannot_be_read_is_named_and_the_rest_is_drawn(folder, tmp_path, capsys):
    (folder / "broken.png").write_bytes(b"no picture")
    content = next(folder.glob("[0-9]*.png")).read_bytes()
    (folder / "half.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert main([str(folder), str(tmp_path / "broken.mp4"), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert f"{folder / 'half.png'} cannot be read" in error
    assert (
        f"{folder / 'broken.png'} cannot be read" in error
        and f"{tmp_path / 'broken.mp4'} cannot be read" in error
    )
    assert len(list((tmp_path / "out" / "in").iterdir())) == 4


def test_pictures_of_the_same_name_do_not_replace_each_other(folder, tmp_path, capsys):
    first = next(folder.iterdir())
    (tmp_path / "other").mkdir()
    second = tmp_path / "other" / first.name
    second.write_bytes(first.read_bytes())
    with pytest.raises(SystemExit):
        main([str(first), str(second), "--output", str(tmp_path / "out")])
    assert f"{first} and {second} would both be drawn to" in capsys.readouterr().err


def test_a_threshold_below_that_of_the_config_is_kept(pictures):
    cfg = _load_config(make_args(score_thresh=0.01, opts=["TEST.DETECTIONS_PER_IMAGE", "1000"]))
    (found,) = Detector(cfg, 0.01).detect([cv2.imread(pictures[0]["file_name"])])
    assert found.scores.min() < 0.05


def test_names_that_are_not_the_models_are_not_used():
    cfg = _load_config(
        make_args(
            opts=[
                "MODEL.RETINANET.NUM_CLASSES",
                "3",
                "DATASETS.TRAIN",
                "()",
                "DATASETS.TEST",
                "('coco_2017_val',)",
            ]
        )
    )
    assert Detector(cfg, 0.5).class_names == ["0", "1", "2"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.png"], "nowhere.png does not exist"),
        (["{folder}/../list.txt"], "is no image (.bmp"),
        (["{folder}/.."], "in/.. has no image"),
        (["{folder}", "--weights", "none.pth"], "--weights none.pth does not exist"),
        (["{folder}", "--config-file", "none.yaml"], "the config none.yaml does not exist"),
        (
            ["{folder}", "--config-file", "configs/Base-FocalRetinaNet.yaml"],
            "names no MODEL.WEIGHTS",
        ),
        (["{folder}", "--score-thresh", "40"], "--score-thresh in [0, 1], got 8 and 40"),
        (["{folder}", "--output", "{folder}/.."], "would be overwritten; choose another --output"),
        (["{folder}", "--opts", "MODEL.DEVISE", "cpu"], "Did you mean 'DEVICE'"),
    ],
)
def test_a_wrong_argument_is_named(words, message, folder, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("a.png")
    if "has no image" in message:
        for file in folder.iterdir():
            file.unlink()
    with pytest.raises(SystemExit):
        main([x.format(folder=folder) for x in words])
    assert message in capsys.readouterr().err
