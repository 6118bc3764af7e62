"""Corruptions of a COCO json, from a grammar.

The check never fails itself, and what it lets pass trains and is evaluated.
"""

import copy
import json
import logging
import math

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from focal_det.check.run import run_checks
from focal_det.env import load_config
from tests.faults.copies import DigitsCopy
from tests.faults.test_training_faults import Trainer, make_trainer

FIELDS = {
    "images": ("id", "file_name", "width", "height"),
    "annotations": (
        "id",
        "image_id",
        "category_id",
        "bbox",
        "area",
        "iscrowd",
        "segmentation",
        "ignore",
        "keypoints",
    ),
    "categories": ("id", "name"),
}
VALUES = [
    None,
    True,
    "x",
    "",
    "2",
    0,
    -1,
    3,
    2.0,
    0.5,
    math.nan,
    1e30,
    [],
    [1, 2],
    [[1, 2]],
    {},
    [[1, 2, 3, 4, 5, 6]],
]
BOXES = [
    [0, 0, 0, 9],
    [5, 5, -3, 4],
    [math.nan, 0, 9, 9],
    [0, 0, 1e30, 9],
    [300, 300, 9, 9],
    [100, 100, 90, 90],
    ["0", 0, 9, 9],
    [1],
]


@st.composite
def corruptions(draw):
    """One or two changes.

    An entry or a field of it is deleted, retyped, out of range, duplicated or swapped; or the file
    is cut off.
    """
    changes = []
    for _ in range(draw(st.integers(1, 2))):
        part = draw(st.sampled_from(["annotations", "annotations", "images", "categories"]))
        kind = draw(
            st.sampled_from(
                ["drop", "swap", "box", "value", "delete", "duplicate", "scalar", "truncate"]
            )
        )
        field = draw(st.sampled_from(FIELDS[part]))
        changes.append(
            (
                kind,
                part,
                field,
                draw(st.integers(0, 7)),
                draw(st.sampled_from(VALUES)),
                draw(st.sampled_from(BOXES)),
            )
        )
    return changes


def corrupt(content, changes):
    """The text of the json with the changes."""
    content, length = copy.deepcopy(content), None
    for kind, part, field, index, value, box in changes:
        entries = content[part]
        entry = entries[index % len(entries)] if entries else {}
        if not isinstance(entry, dict):
            continue
        if kind == "delete":
            entry.pop(field, None)
        elif kind == "value":
            entry[field] = value
        elif (
            kind == "box" and content["annotations"] and isinstance(content["annotations"][0], dict)
        ):
            content["annotations"][0]["bbox"] = box
        elif kind == "duplicate":
            entries.append(copy.deepcopy(entry))
        elif kind == "swap" and isinstance(entries[0], dict):
            entry[field], entries[0][field] = entries[0].get(field), entry.get(field)
        elif kind == "drop" and entries:
            entries.pop(index % len(entries))
        elif kind == "scalar" and entries:
            entries[index % len(entries)] = value
        elif kind == "truncate":
            length = index / 8
    text = json.dumps(content)
    return text if length is None else text[: int(length * len(text))]


@pytest.mark.parametrize("num_examples", [15, pytest.param(250, marks=pytest.mark.slow)])
def test_what_passes_the_check_trains_and_is_evaluated(
    num_examples, tmp_path, clean_catalog, monkeypatch
):
    digits = DigitsCopy(tmp_path)
    outcomes = {"refused": 0, "trained": 0}
    logging.disable(logging.WARNING)

    @seed(num_examples)
    @settings(
        max_examples=num_examples,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(corruptions())
    def run(changes):
        for catalog in (DatasetCatalog, MetadataCatalog):
            if "copy" in catalog.list():
                catalog.pop("copy")
        digits.json.write_text(corrupt(digits.content, changes))
        cfg = load_config(digits.write_config(SOLVER__BASE_LR=1e-3))
        findings, report = run_checks(cfg)
        if findings.get("error"):
            outcomes["refused"] += 1
            assert all(x.places and x.advice for x in findings.get("error"))
            return
        outcomes["trained"] += 1
        assert report is not None
        trainer = make_trainer(Trainer, digits, SOLVER__BASE_LR=1e-3)
        trainer.train()
        trainer.test(trainer.cfg, trainer.model)

    try:
        run()
    finally:
        logging.disable(logging.NOTSET)
    assert min(outcomes.values()) > num_examples // 10, outcomes
