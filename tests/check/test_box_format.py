"""Faults that all annotations share: another box format, shifted category ids."""

import pytest

from focal_det.check import data_rules
from focal_det.check.fix import fix_coco
from tests.check.coco_files import check, get_rules, make_boxes

# Change of the boxes, rule, what the finding has.
FORMATS = {
    "corners": (
        lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]],
        data_rules.OTHER_BOX_FORMAT,
        "They look like x0, y0, x1, y1. ",
    ),
    "centres": (
        lambda b: [b[0] + b[2] / 2, b[1] + b[3] / 2, b[2], b[3]],
        data_rules.OTHER_BOX_FORMAT,
        "They look like centre x, centre y, width, height. ",
    ),
    "transposed": (
        lambda b: [b[1], b[0], b[3], b[2]],
        data_rules.OTHER_BOX_FORMAT,
        "They look like y, x, height, width. ",
    ),
    "of larger images": (
        lambda b: [3 * x for x in b],
        data_rules.BOXES_OF_OTHER_IMAGES,
        "of 12 boxes are outside their image",
    ),
    "fractions": (
        lambda b: [x / 96 for x in b],
        data_rules.BOXES_AS_FRACTIONS,
        "all of 12 boxes are within 0 to 1",
    ),
}


@pytest.mark.parametrize("name", FORMATS)
def test_other_box_format_is_named_and_not_corrected(name, coco):
    change, rule, text = FORMATS[name]
    file, content = make_boxes(coco, change)
    (found,) = check(file, content).get("error")
    assert found.rule is rule
    assert text in str(found) and str(file) in str(found)
    with pytest.raises(ValueError, match=rule.title):
        fix_coco(content)


def test_likely_box_format_is_a_warning_and_not_corrected(coco):
    """Few boxes that are given by their centres extend beyond the image."""
    file, content = make_boxes(coco, lambda b: [max(b[0] - 4, 0) + b[2] / 2, 20, b[2], 25])
    (found,) = [x for x in check(file, content) if x.rule is data_rules.OTHER_BOX_FORMAT]
    assert found.severity == "warning" and "like centre x" in found.advice
    with pytest.raises(ValueError, match="boxes in another format"):
        fix_coco(content)


def set_boxes(content, boxes):
    """Boxes in three images of 96 x 60."""
    for image in content["images"]:
        image["height"] = 60
    content["annotations"] = [
        {
            "id": i + 1,
            "image_id": i % 3 + 1,
            "category_id": i % 2 + 1,
            "bbox": x,
            "area": 9.0,
            "iscrowd": 0,
        }
        for i, x in enumerate(boxes)
    ]


GOOD = {
    "crops, some of whose boxes reach out": [
        *([2 + i % 4, 2 + i % 4, 85 + i % 9, 51] for i in range(17)),
        *[[4, 5, 95, 50]] * 3,
    ],
    "objects far from the left, some of which reach out": [
        *([60 + i, 20 + i, 16, 16] for i in range(17)),
        *[[84, 30, 16, 16]] * 3,
    ],
    "objects to the left, some of which reach out": [
        *([5 + i, 20 + i, 16, 16] for i in range(16)),
        *[[20, 50, 20, 15]] * 4,
    ],
    "boxes of a pixel at the origin": [[0, 0, 1, 1]] * 12,
    "the whole image": [[0, 0, 96, 60]] * 12,
}


@pytest.mark.parametrize("name", GOOD)
def test_good_boxes_are_not_taken_for_another_format(name, coco):
    file, content = coco
    set_boxes(content, GOOD[name])
    assert {*get_rules(check(file, content))} <= {
        data_rules.BOX_CUT,
        data_rules.DUPLICATE_OBJECT,
        data_rules.EMPTY_IMAGES_DROPPED,
    }


def test_boxes_in_pixels_are_not_another_format(coco):
    file, content = make_boxes(coco)
    assert not check(file, content).get("error")
    # Outside the image, in whatever format.
    content["annotations"][0]["bbox"] = [60, 60, 90, 90]
    assert get_rules(check(file, content), "error", "warning") == [data_rules.BOX_OUTSIDE]


@pytest.mark.parametrize(("shift", "words"), [(-1, "1 added"), (1, "1 subtracted")])
def test_shifted_category_ids_are_not_corrected(shift, words, coco):
    file, content = make_boxes(coco)
    for annotation in content["annotations"]:
        annotation["category_id"] += shift
    (found,) = [x for x in check(file, content) if x.rule is data_rules.SHIFTED_CATEGORY_IDS]
    assert found.severity == "error" and words in str(found)
    with pytest.raises(ValueError, match="shifted category ids"):
        fix_coco(content)


def test_single_wrong_category_id_is_not_a_shift(coco):
    file, content = make_boxes(coco)
    content["categories"].append({"id": 3, "name": "unused"})
    content["annotations"][0]["category_id"] = 0
    assert get_rules(check(file, content), "error") == [data_rules.UNKNOWN_CATEGORY]
