"""`focal-det demo`: the shipped model finds digits in pictures, folders and videos, and what is wrong is named."""

import re
from collections import Counter

import cv2
import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model
from PIL import Image

from focal_det.data.digits import build_digits, get_digits_root
from focal_det.env import load_config
from focal_det.model_zoo import get_config_file
from focal_det.tools.demo import Detector, _load_config, main
from tests.conftest import assert_same_detections
from tests.data.make_data import write_coco


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


def test_images_that_check_refuses_are_named(folder, tmp_path, capsys):
    """Detectron2 cuts 16 bits to 8: nearly every pixel of such an image is white."""
    deep, shallow = folder / "deep.png", folder / "shallow.png"
    cv2.imwrite(str(deep), np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64))
    cv2.imwrite(str(shallow), (np.arange(4096) % 256).astype(np.uint16).reshape(64, 64))
    assert main([str(folder), "--output", str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err
    assert "images of more than 8 bits cannot be drawn" in error and "shallow.png" not in error
    assert f"{deep}: mode I;16, values from 0 to 65520" in error and "convert them" in error
    drawn = {x.name for x in (tmp_path / "out" / "in").iterdir()}
    assert drawn == {x.name for x in folder.iterdir()} - {"deep.png"}


@pytest.mark.parametrize("form", ["BGR", "RGB", "L"])
def test_images_are_read_as_in_training(form, folder, tmp_path):
    """In the format of the config, turned as the camera says, and frames of a video alike."""
    file = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    with Image.open(next(folder.iterdir())) as image:
        image.crop((0, 0, 120, 80)).save(file, exif=exif)
    num_channels = 1 if form == "L" else 3
    overrides = ["INPUT.FORMAT", form, "MODEL.PIXEL_MEAN", str([100.0] * num_channels)]
    overrides += ["MODEL.PIXEL_STD", str([58.0] * num_channels)]
    cfg = _load_config(make_args(opts=overrides, weights=save_model(tmp_path, overrides)))
    mapper = DatasetMapper(cfg, is_train=False)
    want = mapper({"file_name": str(file)})["image"]
    detector = Detector(cfg, 0.5)
    seen = []
    detector.model.register_forward_pre_hook(lambda module, args: seen.extend(args[0]))
    image = detector.read(file)
    detector.detect([image, detector.convert_frame(read_image(str(file), "BGR"))])
    assert image.shape == (120, 80, num_channels)
    assert torch.equal(seen[0]["image"], want.float())
    assert torch.equal(seen[1]["image"], want.float())
    assert detector.draw([image], Counter())[0].shape == (480, 320, 3)


def save_model(folder, overrides=(), **content):
    """A checkpoint of the untrained digits model."""
    cfg = load_config(get_config_file("digits/focal_retinanet_tiny.yaml"), overrides)
    DetectionCheckpointer(build_model(cfg), str(folder)).save("model", **content)
    return str(folder / "model.pth")


def draw_with_classes(folder, num_classes, *options, **content):
    """Arguments of a demo with an untrained model that finds every class, in a blank image."""
    overrides = ["MODEL.RETINANET.NUM_CLASSES", str(num_classes), *options]
    cv2.imwrite(str(folder / "blank.png"), np.full((64, 64, 3), 90, np.uint8))
    without_data = ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]
    weights = save_model(folder, [*overrides, *without_data], **content)
    config = get_config_file("digits/focal_retinanet_tiny.yaml")
    words = [str(folder / "blank.png"), "--config-file", config, "--weights", weights]
    words += ["--score-thresh", "0", "--output", str(folder / "out")]
    return [*words, "--opts", *overrides]


def test_class_names_come_from_the_checkpoint(tmp_path, capsys):
    names = ["cat", "dog", "emu"]
    words = draw_with_classes(tmp_path, 3, class_names=names)
    assert main([*words, "DATASETS.TRAIN", "()", "DATASETS.TEST", "('coco_2017_val',)"]) == 0
    output = capsys.readouterr().out
    assert all(f"{name}: " in output for name in names) and "numbers" not in output


def test_class_names_of_another_number_are_refused(tmp_path, capsys):
    words = draw_with_classes(tmp_path, 3, class_names=["cat", "dog"])
    with pytest.raises(SystemExit):
        main([*words, "DATASETS.TRAIN", "()", "DATASETS.TEST", "()"])
    error = capsys.readouterr().err
    assert "model.pth has the names of 2 classes (cat, dog)" in error
    assert "MODEL.RETINANET.NUM_CLASSES is 3. Set it to 2." in error


def test_class_names_come_from_annotations(tmp_path, clean_catalog, capsys):
    """Of a COCO data set, which is not loaded for a demo."""
    write_coco(tmp_path / "coco")
    block = {"name": "demo_shapes", "format": "coco"}
    block |= {"json": str(tmp_path / "coco/coco.json"), "images": str(tmp_path / "coco/images")}
    words = draw_with_classes(tmp_path, 2)
    sets = ["MODEL.FOCAL_DET.DATASETS", str([block]), "DATASETS.TRAIN", "('demo_shapes',)"]
    assert main([*words, *sets, "DATASETS.TEST", "()"]) == 0
    output = capsys.readouterr().out
    assert "circle: " in output and "square: " in output and "numbers" not in output


def test_classes_without_names_are_said_to_be_numbers(tmp_path, capsys):
    words = draw_with_classes(tmp_path, 3)
    assert main([*words, "DATASETS.TRAIN", "()", "DATASETS.TEST", "('coco_2017_val',)"]) == 0
    output = capsys.readouterr().out
    assert "neither the checkpoint nor a data set has names of 3 classes: numbers" in output
    assert "0: " in output and "2: " in output


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
