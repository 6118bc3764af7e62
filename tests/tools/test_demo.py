"""`focal-det demo`: the shipped model in images, folders and videos, and named errors."""

import re

import cv2
import numpy as np
import pytest
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from focal_det.data.digits import build_digits, get_digits_root
from focal_det.env import load_config
from focal_det.tools.demo import main

DIGITS = "digits/focal_retinanet_tiny.yaml"
FASTER = "digits/faster_rcnn_tiny.yaml"


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


def test_folder_is_drawn_picture_by_picture(folder, tmp_path, capsys):
    assert main([str(folder), "--output", str(tmp_path / "out"), "--batch", "3"]) == 0
    names = sorted(x.name for x in folder.iterdir())
    assert sorted(x.name for x in (tmp_path / "out" / "in").iterdir()) == names
    image, drawn = (cv2.imread(str(x / names[0])) for x in (folder, tmp_path / "out" / "in"))
    assert max(drawn.shape) == 480
    assert np.abs(cv2.resize(image, drawn.shape[1::-1]).astype(int) - drawn).max() > 100
    assert "by class: " in capsys.readouterr().out


def test_picture_without_detections_shows_the_best_score(folder, tmp_path, capsys):
    file = next(folder.iterdir())
    assert main([str(file), "--output", str(tmp_path), "--score-thresh", "1"]) == 0
    output = capsys.readouterr().out
    best = float(re.search(r"no detection with score >= 1; best score (0\.\d+)\n", output)[1])
    assert 0.4 < best < 1
    image, drawn = cv2.imread(str(file)), cv2.imread(str(tmp_path / file.name))
    changed = np.abs(cv2.resize(image, drawn.shape[1::-1]).astype(int) - drawn).max(axis=2) > 100
    # A caption along the upper edge and nothing else.
    assert changed[:60].sum() > 500 and not changed[60:].any()


def test_two_stage_detector_draws_its_best_scores(folder, tmp_path, capsys):
    """Not trained: at the threshold of its config it finds nothing, and so has no best score."""
    opts = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.9"]
    cfg = load_config(FASTER, opts)
    DetectionCheckpointer(build_model(cfg), str(tmp_path)).save("model")
    words = [str(folder), "--config-file", FASTER, "--weights", str(tmp_path / "model.pth")]
    assert main([*words, "--output", str(tmp_path / "high"), "--score-thresh", "0.9", *opts]) == 0
    assert re.search(
        r"no detection with score >= 0.9; best score 0\.\d+\n", capsys.readouterr().out
    )
    assert main([*words, "--output", str(tmp_path / "low"), "--score-thresh", "0.01", *opts]) == 0
    assert re.search(r"by class: \d: \d+, ", capsys.readouterr().out)
    name = next(folder.iterdir()).name
    low, high = (cv2.imread(str(tmp_path / x / "in" / name)) for x in ("low", "high"))
    assert (low[60:] != high[60:]).any()


def test_video_keeps_its_frames_and_its_rate(folder, tmp_path):
    frame = cv2.imread(str(next(folder.iterdir())))
    writer = cv2.VideoWriter(
        str(tmp_path / "v.avi"), cv2.VideoWriter.fourcc(*"MJPG"), 10, frame.shape[1::-1]
    )
    for _ in range(5):
        writer.write(frame)
    writer.release()
    assert main([str(tmp_path / "v.avi"), "--output", str(tmp_path / "out"), "--batch", "2"]) == 0
    video = cv2.VideoCapture(str(tmp_path / "out" / "v.mp4"))
    assert video.get(cv2.CAP_PROP_FRAME_COUNT) == 5 and video.get(cv2.CAP_PROP_FPS) == 10


def test_damaged_files_are_named_and_the_rest_is_drawn(folder, tmp_path, capsys):
    (folder / "broken.png").write_bytes(b"no picture")
    content = next(folder.glob("[0-9]*.png")).read_bytes()
    (folder / "half.png").write_bytes(content[: len(content) // 2])
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert main([str(folder), str(tmp_path / "broken.mp4"), "--output", str(tmp_path / "out")]) == 1
    output, error = capsys.readouterr()
    assert "pictures of 4 of 7 files: " in output
    assert f"{folder / 'half.png'} cannot be read" in error
    assert (
        f"{folder / 'broken.png'} cannot be read" in error
        and f"{tmp_path / 'broken.mp4'} cannot be read" in error
    )
    assert len(list((tmp_path / "out" / "in").iterdir())) == 4


def test_images_that_check_refuses_are_named(folder, tmp_path, capsys):
    """Detectron2 cuts 16 bits to 8: nearly every pixel of such an image is white."""
    deep, shallow = folder / "deep.png", folder / "shallow.png"
    cv2.imwrite(str(deep), np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64))
    cv2.imwrite(str(shallow), (np.arange(4096) % 256).astype(np.uint16).reshape(64, 64))
    assert main([str(folder), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "image whose values do not fit into 8 bits cannot be drawn" in error
    assert "shallow.png" not in error
    assert f"{deep}: mode I;16, values from 0 to 65520" in error and "convert the image" in error
    drawn = {x.name for x in (tmp_path / "out" / "in").iterdir()}
    assert drawn == {x.name for x in folder.iterdir()} - {"deep.png"}


@pytest.fixture
def blank(tmp_path):
    """A blank image."""
    cv2.imwrite(str(tmp_path / "blank.png"), np.full((64, 64, 3), 90, np.uint8))
    return tmp_path / "blank.png"


def test_classes_without_names_are_said_to_be_numbers(blank, tmp_path, capsys):
    """An untrained model, which finds every class; the data sets have others."""
    opts = ["MODEL.RETINANET.NUM_CLASSES", "3", "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]
    DetectionCheckpointer(build_model(load_config(DIGITS, opts)), str(tmp_path)).save("model")
    words = ["--config-file", DIGITS, "--weights", str(tmp_path / "model.pth")]
    words += ["--score-thresh", "0", "--output", str(tmp_path / "out")]
    assert main([str(blank), *words, *opts]) == 0
    output = capsys.readouterr().out
    assert "neither checkpoint nor data sets name the 3 classes" in output
    assert "0: " in output
    assert "2: " in output


@pytest.mark.parametrize("position", [0, 1, 3])
def test_config_options_follow_the_inputs(position, blank, tmp_path, capsys):
    """Wherever the flags stand."""
    words = [str(blank), "MODEL.RETINANET.NUM_CLASSES", "11"]
    words[position:position] = ["--output", str(tmp_path / "out")]
    with pytest.raises(SystemExit) as error:
        main(words)
    assert error.value.code == 2
    # The shipped model has ten classes.
    assert "MODEL.RETINANET.NUM_CLASSES is 11" in capsys.readouterr().err


def test_picture_that_cannot_be_written_is_an_error(blank, tmp_path, capsys):
    (tmp_path / "out" / blank.name).mkdir(parents=True)
    with pytest.raises(SystemExit) as error:
        main([str(blank), "--output", str(tmp_path / "out")])
    assert error.value.code == 2
    assert f"{tmp_path / 'out' / blank.name} cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere.png"], "nowhere.png does not exist"),
        (
            ["{image}", "--weights", "none.pth"],
            "--weights or MODEL.WEIGHTS: none.pth does not exist",
        ),
        (["{image}", "--config-file", "none.yaml"], "the config none.yaml does not exist"),
        (
            ["{image}", "--config-file", "Base-FocalRetinaNet.yaml"],
            "no MODEL.WEIGHTS: give a trained checkpoint with --weights",
        ),
        (["{image}", "--score-thresh", "40"], "--score-thresh must be in [0, 1], got 40"),
        (["{image}", "--batch", "0"], "--batch: must be >= 1, got 0"),
        (["{image}", "--output", "{image}/.."], "would be overwritten; choose another --output"),
        (["{image}", "MODEL.DEVISE", "cpu"], "Did you mean 'DEVICE'"),
        (["{image}", "MODEL.DEVICE"], "'MODEL.DEVICE' has no value"),
    ],
)
def test_wrong_argument_is_named(words, message, blank, capsys):
    with pytest.raises(SystemExit) as error:
        main([x.replace("{image}/..", str(blank.parent)).format(image=blank) for x in words])
    assert error.value.code == 2
    assert message in capsys.readouterr().err
