"""A trained model in use: it finds the digits, reads images as training does, knows its classes."""

import cv2
import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import read_image
from detectron2.modeling import build_model
from PIL import Image

import focal_det
from focal_det.env import load_config
from focal_det.inference.predictor import Predictor, load_trained
from focal_det.model_zoo import get_checkpoint_url
from tests.conftest import assert_same_detections
from tests.data.make_data import write_coco

DIGITS = "digits/focal_retinanet_tiny.yaml"
FASTER = "digits/faster_rcnn_tiny.yaml"
WITHOUT_DATA = ["DATASETS.TRAIN", "()", "DATASETS.TEST", "()"]


def make_predictor(*opts, **options):
    """The shipped digits model."""
    return Predictor(load_config(DIGITS, opts), get_checkpoint_url(DIGITS), **options)


def save_untrained(folder, opts=(), config=DIGITS, **content):
    """A checkpoint of a digits config, not trained."""
    cfg = load_config(config, opts)
    DetectionCheckpointer(build_model(cfg), str(folder)).save("model", **content)
    return str(folder / "model.pth")


def test_the_shipped_model_finds_the_digits(records):
    """Each confident detection has a digit of its class where it says; most digits are found."""
    predictor = make_predictor(score_thresh=0.6)
    hits = 0
    num_detections = 0
    for record in records:
        (found,) = predictor([cv2.imread(record["file_name"])])
        for box, label in zip(found.pred_boxes.tensor.tolist(), found.pred_classes.tolist()):
            num_detections += 1
            for x in record["annotations"]:
                x0, y0, w, h = x["bbox"]
                want = np.array([x0, y0, x0 + w, y0 + h])
                hits += x["category_id"] == label and np.abs(np.array(box) - want).max() < 8
    assert num_detections >= 4
    assert hits >= 0.6 * num_detections


def test_batches_have_the_detections_of_single_images(records):
    predictor = make_predictor(score_thresh=0.3)
    images = [cv2.imread(x["file_name"]) for x in records]
    for together, image in zip(predictor(images), images):
        (alone,) = predictor([image])
        assert_same_detections(together, alone)


def test_threshold_replaces_that_of_the_config(records):
    cfg = load_config(DIGITS, ["TEST.DETECTIONS_PER_IMAGE", "1000"])
    before = cfg.dump()
    image = cv2.imread(records[0]["file_name"])
    weights = get_checkpoint_url(DIGITS)
    (by_default,) = Predictor(cfg, weights)([image])
    (low,) = Predictor(cfg, weights, score_thresh=0.01)([image])
    assert low.scores.min() < 0.05 <= by_default.scores.min()
    assert (low.scores.diff() <= 0).all()
    assert cfg.dump() == before


@pytest.mark.parametrize("cls_loss", ["SoftmaxFocalLoss", "FocalLoss"])
def test_threshold_replaces_that_of_a_two_stage_detector(cls_loss, records, tmp_path):
    """Not trained, it gives every class a score below the threshold of the config."""
    stage = "MODEL.FOCAL_DET.ROI_BOX_HEAD"
    opts = [f"{stage}.CLS_LOSS.NAME", cls_loss, f"{stage}.PRIOR_PROB", "0.02"]
    cfg = load_config(FASTER, [*opts, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.9"])
    weights = save_untrained(tmp_path, opts, config=FASTER, class_names=list("abcdefghij"))
    before = cfg.dump()
    image = cv2.imread(records[0]["file_name"])
    predictor = Predictor(cfg, weights, score_thresh=0.0)
    (found,) = predictor([image])
    assert predictor.class_names == list("abcdefghij")
    assert len(found) == 100
    assert 0 < found.scores.min() <= found.scores.max() < 0.9
    assert (found.scores.diff() <= 0).all()
    (by_default,) = Predictor(cfg, weights)([image])
    assert len(by_default) == 0
    assert cfg.dump() == before


def test_class_names_of_another_number_than_a_two_stage_detector_has_are_refused(tmp_path):
    weights = save_untrained(tmp_path, config=FASTER, class_names=["cat", "dog"])
    with pytest.raises(ValueError, match=r"MODEL\.ROI_HEADS\.NUM_CLASSES is 10\. Set it to 2\."):
        load_trained(load_config(FASTER), weights)


@pytest.mark.parametrize("form", ["BGR", "RGB", "L"])
def test_images_are_read_as_in_training(form, records, tmp_path):
    """In the format of the config, turned as the camera says, and frames of a video alike."""
    file = tmp_path / "turned.png"
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn
    with Image.open(records[0]["file_name"]) as image:
        image.crop((0, 0, 120, 80)).save(file, exif=exif)
    num_channels = 1 if form == "L" else 3
    opts = ["INPUT.FORMAT", form, "MODEL.PIXEL_MEAN", str([100.0] * num_channels)]
    opts += ["MODEL.PIXEL_STD", str([58.0] * num_channels)]
    cfg = load_config(DIGITS, opts)
    predictor = Predictor(cfg, save_untrained(tmp_path, opts))
    want = DatasetMapper(cfg, is_train=False)({"file_name": str(file)})["image"]
    seen = []
    predictor.model.register_forward_pre_hook(lambda module, args: seen.extend(args[0]))
    image = predictor.read(file)
    predictor([image, predictor.convert_frame(read_image(str(file), "BGR"))])
    assert image.shape == (120, 80, num_channels)
    assert torch.equal(seen[0]["image"], want.float())
    assert torch.equal(seen[1]["image"], want.float())


def load_untrained(folder, opts, **content):
    """An untrained model for three classes."""
    opts = ["MODEL.RETINANET.NUM_CLASSES", "3", *opts]
    weights = save_untrained(folder, [*opts, *WITHOUT_DATA], **content)
    return load_trained(load_config(DIGITS, opts), weights)


def test_class_names_come_from_the_checkpoint(tmp_path):
    names = ["cat", "dog", "emu"]
    trained = load_untrained(tmp_path, WITHOUT_DATA, class_names=names)
    assert trained.class_names == names
    assert trained.has_names
    assert not trained.model.training


def test_class_names_of_another_number_are_refused(tmp_path):
    message = (
        r"model\.pth has the names of 2 classes \(cat, dog\), but "
        r"MODEL\.RETINANET\.NUM_CLASSES is 3\. Set it to 2\."
    )
    with pytest.raises(ValueError, match=message):
        load_untrained(tmp_path, WITHOUT_DATA, class_names=["cat", "dog"])


def test_class_names_come_from_annotations(tmp_path, clean_catalog):
    """Those of a COCO data set that is not loaded for this."""
    write_coco(tmp_path / "coco")
    block = {"name": "demo_shapes", "format": "coco"}
    block |= {"json": str(tmp_path / "coco/coco.json"), "images": str(tmp_path / "coco/images")}
    opts = ["MODEL.FOCAL_DET.DATASETS", str([block]), "DATASETS.TRAIN", "('demo_shapes',)"]
    opts += ["DATASETS.TEST", "()", "MODEL.RETINANET.NUM_CLASSES", "2"]
    trained = load_untrained(tmp_path, opts)
    assert trained.class_names == ["circle", "square"]
    assert trained.has_names


def test_classes_without_names_have_numbers(tmp_path):
    opts = ["DATASETS.TRAIN", "()", "DATASETS.TEST", "('coco_2017_val',)"]
    trained = load_untrained(tmp_path, opts)
    assert trained.class_names == ["0", "1", "2"]
    assert not trained.has_names


def test_missing_weights_are_named():
    cfg = load_config("Base-FocalRetinaNet.yaml", ["MODEL.WEIGHTS", ""])
    with pytest.raises(ValueError, match=r"no MODEL\.WEIGHTS: give a trained checkpoint"):
        load_trained(cfg)
    with pytest.raises(
        FileNotFoundError, match=r"--weights or MODEL\.WEIGHTS: none\.pth does not exist"
    ):
        load_trained(cfg, "none.pth")


def test_every_exported_name_resolves():
    assert focal_det.Predictor is Predictor
    assert focal_det.load_trained is load_trained
    for name in focal_det.__all__:
        assert getattr(focal_det, name) is not None
