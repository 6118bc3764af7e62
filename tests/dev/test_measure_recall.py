"""dev/measure_recall.py: the recall of proposals, whatever the ids of the images."""

import pytest
import torch
from detectron2.modeling import build_model

from focal_det.env import load_config
from tests.conftest import load_dev
from tests.data.make_data import write_two_stage_config, write_voc

script = load_dev("measure_recall")


@pytest.mark.usefixtures("clean_catalog")
def test_ids_that_are_text_count(tmp_path):
    """pycocotools takes such an id for a list of its letters, and finds no objects."""
    write_voc(tmp_path)
    # An id of one letter would be found.
    for file in [*tmp_path.glob("*/*.jpg"), *tmp_path.glob("*/*.xml")]:
        file.rename(file.with_stem(f"image_{file.stem}"))
    split = tmp_path / "ImageSets" / "Main" / "val.txt"
    split.write_text("".join(f"image_{x}\n" for x in split.read_text().split()))
    block = {"name": "cells_voc", "format": "voc", "root": str(tmp_path), "split": "val"}
    block |= {"classes": ["circle", "square"], "evaluator": "coco"}
    config = write_two_stage_config(tmp_path, test=["cells_voc"])
    cfg = load_config(config, ["MODEL.FOCAL_DET.DATASETS", str([block]), "DATASETS.TRAIN", "()"])
    torch.manual_seed(0)
    weights = tmp_path / "model.pth"
    torch.save({"model": build_model(cfg).state_dict()}, weights)
    # Twice, as the evaluator's file of the first run is read in the second.
    recalls = [script.evaluate_proposals(cfg, weights, str(tmp_path)) for _ in range(2)]
    assert recalls[0] == recalls[1]
    # Untrained proposals cover the image, and its large objects with it.
    assert 0 < recalls[0]["AR@100"] <= recalls[0]["AR@1000"] <= 100
