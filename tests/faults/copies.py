"""Small copies of real data sets to put faults into, and what Detectron2 and we do with them."""

import json
import logging
import os
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    get_detection_dataset_dicts,
)
from detectron2.data.datasets import register_coco_instances
from detectron2.evaluation import COCOEvaluator
from detectron2.structures import Boxes, BoxMode, Instances

from focal_det.data.digits import build_digits, get_digits_root
from focal_det.model_zoo import get_config_file
from focal_det.tools.check import main as check
from focal_det.tools.train import main as train

NUM_IMAGES = 8
CELLS = ["RBC", "WBC", "Platelets"]
# Arguments of `DigitsCopy.write_config` for small two-stage detectors.
FASTER = {"base": "faster_rcnn_tiny"}
CASCADE = {
    **FASTER,
    "MODEL__ROI_HEADS__NAME": "FocalCascadeROIHeads",
    "MODEL__ROI_BOX_HEAD__CLS_AGNOSTIC_BBOX_REG": True,
}


class DigitsCopy:
    """The first images of digits_val and their annotations, as a COCO data set in `folder`."""

    def __init__(self, folder: Path) -> None:
        build_digits("val")
        source = get_digits_root() / "val"
        content = json.loads((source / "annotations.json").read_text())
        content["images"] = content["images"][:NUM_IMAGES]
        ids = {x["id"] for x in content["images"]}
        content["annotations"] = [x for x in content["annotations"] if x["image_id"] in ids]
        self.folder, self.content, self.json, self.images = (
            folder,
            content,
            folder / "digits.json",
            folder / "images",
        )
        self.images.mkdir()
        for image in content["images"]:
            shutil.copy(source / "images" / image["file_name"], self.images)
        self.save()

    def save(self) -> None:
        self.json.write_text(json.dumps(self.content))

    def write_config(self, changes: str = "", base: str = "focal_retinanet_tiny", **keys) -> Path:
        """A config that trains and tests on the copy for two iterations.

        Args:
            base: a config of configs/digits.
            keys: with __ for dots.
        """
        block = {
            "name": "copy",
            "format": "coco",
            "json": str(self.json),
            "images": str(self.images),
        }
        content = {"_BASE_": get_config_file(f"digits/{base}.yaml")}
        values = {
            "MODEL__FOCAL_DET__DATASETS": [block],
            "DATASETS__TRAIN": ["copy"],
            "DATASETS__TEST": ["copy"],
            "SOLVER__MAX_ITER": 2,
            "SOLVER__STEPS": [],
            "SOLVER__WARMUP_ITERS": 0,
            "SOLVER__IMS_PER_BATCH": 2,
            "TEST__EVAL_PERIOD": 0,
            "OUTPUT_DIR": str(self.folder / "out"),
            **keys,
        }
        for key, value in values.items():
            node, *rest = content, *key.split("__")
            for part in rest[:-1]:
                node = node.setdefault(part, {})
            node[rest[-1]] = value
        file = self.folder / "config.yaml"
        file.write_text(yaml.safe_dump(content) + changes)
        return file


def copy_cells(folder: Path) -> Path:
    """Six images of the blood cells in VOC layout, two of which have a box without area.

    Skips without the data set.
    """
    source = os.environ.get("FOCAL_DET_BCCD")
    if not source:
        pytest.skip("FOCAL_DET_BCCD does not name the blood cells")
    names = [
        "BloodImage_00338",
        "BloodImage_00343",
        "BloodImage_00000",
        "BloodImage_00001",
        "BloodImage_00002",
        "BloodImage_00003",
    ]
    for part, suffix in (("JPEGImages", ".jpg"), ("Annotations", ".xml")):
        (folder / part).mkdir(parents=True)
        for name in names:
            shutil.copy(Path(source) / part / f"{name}{suffix}", folder / part)
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    (folder / "ImageSets" / "Main" / "all.txt").write_text("\n".join(names))
    return folder


def write_voc_config(folder: Path, block: dict) -> Path:
    """A config that trains and tests on a data set in VOC layout."""
    model = {
        "RETINANET": {"NUM_CLASSES": len(block["classes"])},
        "FOCAL_DET": {"DATASETS": [block]},
    }
    content = {
        "_BASE_": get_config_file("digits/focal_retinanet_tiny.yaml"),
        "MODEL": model,
        "OUTPUT_DIR": str(folder / "out"),
    }
    content["DATASETS"] = {"TRAIN": [block["name"]], "TEST": [block["name"]]}
    (folder / "config.yaml").write_text(yaml.safe_dump(content))
    return folder / "config.yaml"


def run_check(config: Path, capsys, *words: str) -> tuple[int, str]:
    """Exit code and output of `focal-det check`."""
    try:
        code = check(["--config-file", str(config), *map(str, words)])
    except SystemExit as error:
        code = error.code
    captured = capsys.readouterr()
    return code, captured.out + captured.err


def run_train(config: Path, *words: str) -> None:
    """`focal-det train` without its checks."""
    train(["--no-check", "--config-file", str(config), *words])


def refuse_train(capsys, config: Path, *words: str) -> str:
    """The message of a `focal-det train` that is refused with exit code 2."""
    with pytest.raises(SystemExit) as error:
        run_train(config, *words)
    assert error.value.code == 2
    return capsys.readouterr().err


def run_stock(json_file: Path, images: Path, *, shift: int = 0) -> str:
    """What Detectron2's own loader, mapper and evaluator do with a COCO json.

    They "go on", or stop: the answer says where and with what.

    Args:
        shift: of the classes that are detected.
    """
    logging.disable(logging.CRITICAL)
    phase = "loading"
    try:
        register_coco_instances("stock_copy", {}, str(json_file), str(images))
        records = get_detection_dataset_dicts(["stock_copy"], filter_empty=True)
        phase = "training, when it comes to the image"
        mapper = DatasetMapper(get_cfg(), is_train=True, augmentations=[])
        batches = [mapper(x) for x in records]
        num_kept = sum(len(x["instances"].gt_boxes.nonempty().nonzero()) for x in batches)
        phase = "evaluation, after the training"
        evaluator = COCOEvaluator("stock_copy", output_dir=str(json_file.parent / "stock"))
        evaluator.reset()
        evaluator.process(records, [{"instances": make_detections(x, shift)} for x in records])
        evaluator.evaluate()
        num_boxes = len(json.loads(json_file.read_text())["annotations"])
        return f"goes on with {num_kept} of {num_boxes} boxes"
    except Exception as error:
        message = str(error).replace(str(json_file.parent), "...")[:100]
        return f"stops in {phase}: {type(error).__name__}: {message}"
    finally:
        logging.disable(logging.NOTSET)
        if "stock_copy" in DatasetCatalog.list():
            DatasetCatalog.pop("stock_copy")
            MetadataCatalog.pop("stock_copy")


def make_detections(record: dict, shift: int = 0) -> Instances:
    """The boxes of a dataset dict as detections, of classes that are `shift` higher."""
    boxes = [
        BoxMode.convert(x["bbox"], x["bbox_mode"], BoxMode.XYXY_ABS) for x in record["annotations"]
    ]
    found = Instances((record["height"], record["width"]))
    found.pred_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    found.scores = torch.ones(len(boxes))
    found.pred_classes = torch.tensor(
        [x["category_id"] + shift for x in record["annotations"]], dtype=torch.int64
    )
    return found
