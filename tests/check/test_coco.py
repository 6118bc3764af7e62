"""Faults of a COCO JSON: each is found with its place, nothing else is, and a copy is corrected."""

import json
import math

import pytest

from focal_det.check import data_rules
from focal_det.check.findings import Findings
from focal_det.check.fix import fix_coco
from focal_det.check.json_file import read_coco
from focal_det.check.rules import FIX_NOTE
from focal_det.report.findings import print_findings
from tests.check.coco_files import check, get_rules, make_boxes


def test_correct_data_has_no_finding_but_a_note(coco):
    (found,) = check(*coco)
    assert found.rule is data_rules.EMPTY_IMAGES_DROPPED and "1 of 4" in str(found)
    assert check(*coco).exit_code == 0


# Rule: how it is broken, what the place has, the severity.
FAULTS = {
    data_rules.DUPLICATE_IMAGE_ID: (
        lambda c: c["images"][1].update(id=1),
        "id 1 of 0.png and 1.png",
        "error",
    ),
    data_rules.INCOMPLETE_IMAGE: (lambda c: c["images"][0].pop("width"), "has no width", "error"),
    data_rules.FILE_OUTSIDE_FOLDER: (
        lambda c: c["images"][0].update(file_name="../0.png"),
        "image 1, ../0.png",
        "warning",
    ),
    data_rules.DUPLICATE_ANNOTATION_ID: (
        lambda c: c["annotations"][1].update(id=1),
        "annotation id 1, 2 times",
        "error",
    ),
    data_rules.INCOMPLETE_ANNOTATION: (
        lambda c: c["annotations"][1].pop("bbox"),
        "no bbox",
        "error",
    ),
    data_rules.NO_CROWD_OR_AREA: (
        lambda c: c["annotations"][2].pop("iscrowd"),
        "annotation 3 (image 2): no iscrowd",
        "error",
    ),
    data_rules.UNKNOWN_IMAGE: (
        lambda c: c["annotations"][0].update(image_id=77),
        "annotation 1: image 77",
        "error",
    ),
    data_rules.UNKNOWN_CATEGORY: (
        lambda c: c["annotations"][0].update(category_id=9),
        "0.png (image 1, 96 x 96): category 9",
        "error",
    ),
    data_rules.BOX_WITHOUT_AREA: (
        lambda c: c["annotations"][0].update(bbox=[8, 10, 0, 36]),
        "annotation 1 of 0.png (image 1, 96 x 96): [8, 10, 0, 36]",
        "warning",
    ),
    data_rules.BOX_OUTSIDE: (
        lambda c: c["annotations"][0].update(bbox=[200, 0, 9, 9]),
        "(image 1, 96 x 96): [200, 0, 9, 9]",
        "warning",
    ),
    data_rules.BOX_CUT: (
        lambda c: c["annotations"][0].update(bbox=[60, 60, 50, 20]),
        "[60, 60, 50, 20]",
        "warning",
    ),
    data_rules.BOX_NOT_FINITE: (
        lambda c: c["annotations"][0].update(bbox=[8, math.nan, 36, 36]),
        "[8, nan, 36, 36]",
        "error",
    ),
    data_rules.MIXED_IMAGE_IDS: (lambda c: c["images"][0].update(id="a"), "int, str", "error"),
    data_rules.INVALID_IMAGE_ID: (lambda c: c["images"][0].update(id=1e30), "id is 1e+30", "error"),
    data_rules.INVALID_IMAGE_SIZE: (
        lambda c: c["images"][0].update(width="96"),
        '"width": "96"',
        "error",
    ),
    data_rules.IMPOSSIBLE_FILE_NAME: (
        lambda c: c["images"][1].update(file_name="1\0.png"),
        "image 2, '1\\x00.png'",
        "error",
    ),
    data_rules.DUPLICATE_IMAGE_FILE: (
        lambda c: c["images"][1].update(file_name="0.png"),
        "0.png as ids 1, 2",
        "warning",
    ),
    data_rules.INVALID_CATEGORY: (
        lambda c: c["categories"][0].pop("name"),
        '{"id": 1}',
        "error",
    ),
    data_rules.DUPLICATE_CATEGORY_NAME: (
        lambda c: c["categories"][0].update(name="square"),
        "square",
        "warning",
    ),
    data_rules.ANNOTATION_ID_ZERO: (
        lambda c: c["annotations"][0].update(id=0),
        "coco.json",
        "warning",
    ),
    data_rules.INVALID_ANNOTATION_ID: (
        lambda c: c["annotations"][0].update(id="x"),
        'annotation "x"',
        "error",
    ),
    data_rules.INVALID_CROWD: (lambda c: c["annotations"][0].update(ignore=1), "ignore 1", "error"),
    data_rules.INVALID_AREA: (
        lambda c: c["annotations"][0].update(area=None),
        "area None",
        "error",
    ),
    data_rules.INVALID_OUTLINE: (
        lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]]),
        "[[1, 2, 3, 4]]",
        "warning",
    ),
    data_rules.INVALID_SEGMENTATION: (
        lambda c: c["annotations"][0].update(segmentation={"size": 3}),
        "{'size': 3}",
        "error",
    ),
    data_rules.INVALID_KEYPOINTS: (
        lambda c: c["annotations"][0].update(keypoints=["a"]),
        "['a']",
        "error",
    ),
    data_rules.DUPLICATE_OBJECT: (
        lambda c: c["annotations"].append({**c["annotations"][0], "id": 9}),
        "annotation 9 (image 1): [8, 10, 36, 36]",
        "warning",
    ),
    data_rules.CATEGORY_ID_GAPS: (
        lambda c: c["categories"].append({"id": 7, "name": "late"}),
        "7 (late) -> 2",
        "note",
    ),
    data_rules.NOTHING_TO_TRAIN_ON: (lambda c: c["annotations"].clear(), "coco.json", "error"),
}


def get_id(value):
    return getattr(value, "id", None)


@pytest.mark.parametrize("rule", FAULTS, ids=get_id)
def test_fault_is_found_with_its_place(rule, coco):
    file, content = coco
    make_fault, place, severity = FAULTS[rule]
    make_fault(content)
    (found,) = [x for x in check(file, content) if x.rule is rule]
    assert found.severity == severity
    assert found.count == 1
    assert place in str(found)
    assert str(file) in str(found)


def test_first_places_are_shown_and_the_rest_counted(coco):
    file, content = coco
    for annotation in content["annotations"]:
        annotation["bbox"][2] = 0
    (found,) = [x for x in check(file, content) if x.rule is data_rules.BOX_WITHOUT_AREA]
    assert found.count == 4 and len(found.places) == 3
    assert "box without area (4): " in str(found) and "; and 1 more" in str(found)


def test_missing_iscrowd_is_an_error_of_test_sets_only(coco):
    file, content = coco
    del content["annotations"][0]["iscrowd"]
    assert check(file, content, is_test=False).exit_code == 1
    assert check(file, content).exit_code == 2


@pytest.mark.parametrize("is_faulty", [False, True])
def test_fix_is_named_once_after_faults_that_it_corrects(is_faulty, coco, capsys):
    file, content = coco
    if is_faulty:
        content["annotations"][0]["bbox"] = [200, 0, 9, 9]
        content["annotations"][1]["area"] = None
    print_findings(check(file, content))
    output = capsys.readouterr().out
    assert output.count("--fix OUT.json") == is_faulty
    assert output.endswith(f"{FIX_NOTE}\n") == is_faulty


def test_float_ids_of_whole_numbers_are_valid(coco):
    file, content = coco
    for annotation in content["annotations"]:
        annotation.update({k: float(annotation[k]) for k in ("id", "image_id", "category_id")})
    assert check(file, content).exit_code == 0


def test_annotations_of_a_broken_image_are_not_reported(coco):
    file, content = coco
    del content["images"][0]["width"]
    assert get_rules(check(file, content), "error") == [data_rules.INCOMPLETE_IMAGE]
    fixed, _ = fix_coco(content)
    assert len(fixed["annotations"]) == len(content["annotations"])


@pytest.mark.parametrize("is_train", [True, False])
def test_only_a_test_set_may_have_no_annotations(is_train, coco):
    file, content = coco
    content["annotations"] = None
    file.write_text(json.dumps(content))
    findings = Findings()
    content = read_coco(file, findings, is_train=is_train)
    if is_train:
        assert content is None and get_rules(findings) == [data_rules.MISSING_LIST]
        return
    (found,) = check(file, content, is_train=False)
    assert found.rule is data_rules.NOTHING_TO_EVALUATE_ON
    assert found.severity == "warning" and "metrics are missing" in str(found)


EMPTY = [
    (True, True, data_rules.EMPTY_IMAGES_DROPPED),
    (True, False, data_rules.EMPTY_IMAGES_KEPT),
    (False, True, data_rules.EMPTY_IMAGES_TESTED),
]


@pytest.mark.parametrize(("is_train", "filter_empty", "rule"), EMPTY)
def test_fate_of_empty_images_follows_the_config(is_train, filter_empty, rule, coco):
    file, content = coco
    findings = check(file, content, is_train=is_train, filter_empty=filter_empty)
    assert get_rules(findings) == [rule]


def test_duplicates_are_neither_outlines_nor_crowds(coco):
    file, content = coco
    first = content["annotations"][0]
    content["annotations"] += [
        {**first, "id": 11, "segmentation": [[8, 10, 44, 10, 44, 46]]},
        *({**first, "id": 12 + i, "iscrowd": 1} for i in range(2)),
    ]
    assert check(file, content).exit_code == 0
    fixed, _ = fix_coco(content)
    assert len(fixed["annotations"]) == len(content["annotations"])


def test_image_with_crowds_alone_is_empty(coco):
    """As Detectron2 counts, which leaves it out of training."""
    file, content = coco
    for annotation in content["annotations"]:
        annotation["iscrowd"] = int(annotation["image_id"] == 1)
    (found,) = check(file, content)
    assert found.rule is data_rules.EMPTY_IMAGES_DROPPED and "2 of 4" in str(found)


def test_annotations_of_a_duplicate_image_id_stay_as_they_are(coco):
    """Nobody knows which of the images they belong to, so which size they have to fit."""
    file, content = coco
    content["images"][1].update(id=1, width=960, height=960)
    content["annotations"] = [x for x in content["annotations"] if x["image_id"] == 1]
    beyond_the_first = [[80, 10, 90, 40], [500, 500, 40, 40]]
    first = content["annotations"][0]
    content["annotations"] += [
        {**first, "id": 11 + i, "bbox": box, "area": box[2] * box[3]}
        for i, box in enumerate(beyond_the_first)
    ]
    assert get_rules(check(file, content), "error", "warning") == [data_rules.DUPLICATE_IMAGE_ID]
    fixed, _ = fix_coco(content)
    assert fixed["annotations"] == content["annotations"]


def test_crowd_with_a_cut_box_is_not_trained_on(coco):
    file, content = coco
    for annotation in content["annotations"]:
        annotation.update(bbox=[60, 60, 50, 20], iscrowd=1)
    assert data_rules.NOTHING_TO_TRAIN_ON in get_rules(check(file, content), "error")


@pytest.mark.parametrize("counts", ["PP0", [0, 9]])
def test_rle_needs_a_size(counts, coco):
    file, content = coco
    content["annotations"][0]["segmentation"] = {"counts": counts}
    assert get_rules(check(file, content), "error") == [data_rules.INVALID_SEGMENTATION]
    content["annotations"][0]["segmentation"]["size"] = [96, 96]
    assert check(file, content).exit_code == 0


# What --fix leaves to a person.
FOR_A_PERSON = {
    data_rules.DUPLICATE_IMAGE_ID,
    data_rules.INCOMPLETE_IMAGE,
    data_rules.FILE_OUTSIDE_FOLDER,
    data_rules.MIXED_IMAGE_IDS,
    data_rules.INVALID_IMAGE_ID,
    data_rules.INVALID_IMAGE_SIZE,
    data_rules.IMPOSSIBLE_FILE_NAME,
    data_rules.DUPLICATE_IMAGE_FILE,
    data_rules.INVALID_CATEGORY,
    data_rules.DUPLICATE_CATEGORY_NAME,
    data_rules.NOTHING_TO_TRAIN_ON,
}


@pytest.mark.parametrize("rule", FAULTS, ids=get_id)
def test_copy_is_corrected_and_the_original_kept(rule, coco):
    file, content = coco
    make_fault, _, _ = FAULTS[rule]
    make_fault(content)
    before = json.dumps(content)
    fixed, changes = fix_coco(content)
    assert json.dumps(content) == before
    left = get_rules(check(file, fixed), "error", "warning")
    assert bool(left) == (rule in FOR_A_PERSON)
    if rule not in FOR_A_PERSON:
        assert changes or rule is data_rules.CATEGORY_ID_GAPS


def test_cut_box_does_not_enlarge_the_area(coco):
    _, content = coco
    content["annotations"][0].update(bbox=[80, 10, 40, 20], area=30)
    fixed, _ = fix_coco(content)
    assert fixed["annotations"][0]["bbox"] == [80, 10, 16, 20]
    assert fixed["annotations"][0]["area"] == 30


def test_numbers_as_text_are_converted(coco):
    file, content = coco
    expected = json.loads(json.dumps(content["annotations"]))
    for annotation in content["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])
        annotation["category_id"] = str(annotation["category_id"])
        annotation["bbox"] = [str(x) for x in annotation["bbox"]]
    fixed, changes = fix_coco(content)
    assert fixed["annotations"] == expected and check(file, fixed).exit_code == 0
    assert "converted: image_id from text (4): annotation 1, 2, 3, 4" in changes


def test_fix_refuses_to_remove_much(coco):
    _, content = make_boxes(coco)
    for annotation in content["annotations"][:6]:
        annotation["image_id"] = 77
    message = r"remove 6 of 12 annotations, .*: annotation of an unknown image \(6\)"
    with pytest.raises(ValueError, match=message):
        fix_coco(content)
