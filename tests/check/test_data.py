"""Checks of data: each fault that is made is found, with its place and what to do, and nothing else is."""

import bz2
import gzip
import json
import lzma
import math
import shutil

import cv2
import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from detectron2.structures import BoxMode
from PIL import Image

from focal_det.check.annotations import describe_box_fault
from focal_det.check.coco import check_coco, read_coco
from focal_det.check.findings import Findings
from focal_det.check.fix import fix_coco
from focal_det.check.images import check_images, check_overlap
from focal_det.check.records import check_records
from focal_det.messages import shorten
from tests.data.make_data import write_coco, write_images


@pytest.fixture
def coco(tmp_path):
    """A correct COCO json: its file and content."""
    write_coco(tmp_path)
    return tmp_path / "coco.json", json.loads((tmp_path / "coco.json").read_text())


def check(file, content):
    findings = Findings()
    check_coco(content, file, findings)
    return findings


def test_nothing_is_wrong_with_correct_data_but_an_empty_image_is_noted(coco):
    findings = list(check(*coco))
    assert [x.severity for x in findings] == ["note"] and "1 of 4" in str(findings[0])
    assert check(*coco).exit_code == 0


FAULTS = {
    "image ids given twice": (
        lambda c: c["images"][1].update(id=1),
        "id 1 of 0.png and 1.png",
        "error",
    ),
    "images without a field": (lambda c: c["images"][0].pop("width"), "has no width", "error"),
    "file names that leave the folder": (
        lambda c: c["images"][0].update(file_name="../0.png"),
        "image 1, ../0.png",
        "warning",
    ),
    "annotation ids given more than once": (
        lambda c: c["annotations"][1].update(id=1),
        "annotation id 1, 2 times",
        "error",
    ),
    "annotations without a field": (lambda c: c["annotations"][1].pop("bbox"), "no bbox", "error"),
    "annotations without iscrowd": (
        lambda c: c["annotations"][2].pop("iscrowd"),
        "annotation 3 (image 2): no iscrowd",
        "error",
    ),
    "annotations of unknown images": (
        lambda c: c["annotations"][0].update(image_id=77),
        "annotation 1: image 77",
        "error",
    ),
    "annotations of unknown categories": (
        lambda c: c["annotations"][0].update(category_id=9),
        "0.png (image 1, 96 x 96): category 9",
        "error",
    ),
    "boxes without area": (
        lambda c: c["annotations"][0].update(bbox=[8, 10, 0, 36]),
        "annotation 1 of 0.png (image 1, 96 x 96): [8, 10, 0, 36]",
        "warning",
    ),
    "boxes outside of the image": (
        lambda c: c["annotations"][0].update(bbox=[200, 0, 9, 9]),
        "(image 1, 96 x 96): [200, 0, 9, 9]",
        "warning",
    ),
    "boxes that reach out": (
        lambda c: c["annotations"][0].update(bbox=[60, 60, 50, 20]),
        "[60, 60, 50, 20]",
        "warning",
    ),
    "four finite numbers": (
        lambda c: c["annotations"][0].update(bbox=[8, math.nan, 36, 36]),
        "[8, nan, 36, 36]",
        "error",
    ),
    "image ids of different types": (lambda c: c["images"][0].update(id="a"), "int, str", "error"),
    "images with an invalid id": (lambda c: c["images"][0].update(id=1e30), "id is 1e+30", "error"),
    "images with an invalid file name or size": (
        lambda c: c["images"][0].update(width="96"),
        '"width": "96"',
        "error",
    ),
    "images with an invalid file name": (
        lambda c: c["images"][1].update(file_name="1\0.png"),
        "image 2, '1\\x00.png'",
        "error",
    ),
    "image files listed more than once": (
        lambda c: c["images"][1].update(file_name="0.png"),
        "0.png as ids 1, 2",
        "warning",
    ),
    "categories that have no id or name": (
        lambda c: c["categories"][0].pop("name"),
        '{"id": 1}',
        "error",
    ),
    "categories of the same name": (
        lambda c: c["categories"][0].update(name="square"),
        "square",
        "warning",
    ),
    "annotation id 0": (lambda c: c["annotations"][0].update(id=0), "coco.json", "warning"),
    "id is not a whole number": (
        lambda c: c["annotations"][0].update(id="x"),
        'annotation "x"',
        "error",
    ),
    "iscrowd is not 0 or 1": (lambda c: c["annotations"][0].update(ignore=1), "ignore 1", "error"),
    "area is no number": (lambda c: c["annotations"][0].update(area=None), "area None", "error"),
    "outline has no polygon": (
        lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3, 4]]),
        "[[1, 2, 3, 4]]",
        "warning",
    ),
    "segmentation is none": (
        lambda c: c["annotations"][0].update(segmentation={"size": 3}),
        "{'size': 3}",
        "error",
    ),
    "keypoints are not numbers": (
        lambda c: c["annotations"][0].update(keypoints=["a"]),
        "['a']",
        "error",
    ),
    "objects given more than once": (
        lambda c: c["annotations"].append({**c["annotations"][0], "id": 9}),
        "annotation 9 (image 1): [8, 10, 36, 36]",
        "warning",
    ),
    "category ids have gaps": (
        lambda c: c["categories"].append({"id": 7, "name": "late"}),
        "7 (late) -> 2",
        "note",
    ),
    "without a usable annotation": (lambda c: c["annotations"].clear(), "coco.json", "error"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_a_fault_is_found_with_its_place(what, coco):
    file, content = coco
    make_fault, place, severity = FAULTS[what]
    make_fault(content)
    (found,) = [x for x in check(file, content) if what in x.what]
    assert (
        found.severity == severity
        and place in str(found)
        and str(file) in str(found)
        and found.count == 1
    )


def test_of_many_places_the_first_are_shown_and_the_rest_counted(coco):
    file, content = coco
    for annotation in content["annotations"]:
        annotation["bbox"][2] = 0
    (found,) = [x for x in check(file, content) if x.what == "boxes without area"]
    assert found.count == 4 and len(found.places) == 3 and "; and 1 more" in str(found)


def test_the_same_kind_is_an_error_of_one_set_and_a_warning_of_another(coco):
    """The first severity once stayed, so that what stops the evaluation was told as a warning."""
    file, content = coco
    del content["annotations"][0]["iscrowd"]
    findings = Findings()
    check_coco(content, file, findings, is_test=False)
    assert findings.exit_code == 1
    check_coco(content, file, findings)
    assert findings.exit_code == 2 and [len(findings.get(x)) for x in ("error", "warning")] == [
        1,
        1,
    ]


def test_ids_that_are_whole_numbers_of_another_type_are_good(coco):
    file, content = coco
    for annotation in content["annotations"]:
        annotation.update({k: float(annotation[k]) for k in ("id", "image_id", "category_id")})
    assert check(file, content).exit_code == 0


def test_of_an_image_without_size_the_annotations_are_no_further_findings(coco):
    file, content = coco
    del content["images"][0]["width"]
    assert [x.what for x in check(file, content).get("error")] == ["images without a field"]
    assert len(fix_coco(content)[0]["annotations"]) == len(content["annotations"])


@pytest.mark.parametrize("is_train", [True, False])
def test_a_test_set_may_be_without_annotations(is_train, coco):
    file, content = coco
    content["annotations"] = None
    file.write_text(json.dumps(content))
    findings = Findings()
    content = read_coco(file, findings, is_train=is_train)
    if is_train:
        assert content is None and findings.exit_code == 2
        return
    check_coco(content, file, findings, is_train=False)
    (found,) = findings
    assert found.severity == "warning" and "there are no figures" in str(found)


def test_no_control_character_gets_out_of_a_finding():
    findings = Findings()
    findings.add("error", "faults", "Mend \x1b[2Jthem.", "a\x1b[31m\0b\x9b\u202e\ud800\nc é 猫")
    (found,) = findings
    assert found.places == [r"a\x1b[31m\x00b\x9b\u202e\ud800 c é 猫"]
    assert "\x1b" not in str(found) and "\\x1b[2Jthem" in found.advice


def test_a_long_place_and_long_names_are_shortened():
    findings = Findings()
    findings.add("error", "faults", "", "start " + 20_000 * "x" + " end")
    (found,) = findings
    assert len(str(found)) < 3000 and " end" in str(found) and "start" in str(found)
    assert shorten(["a" * 20_000, "b"]).endswith("aaa, b") and len(shorten(["a" * 20_000])) < 100


EMPTY = [
    (True, True, "Training leaves them out; with"),
    (True, False, "They teach what background is"),
    (False, True, "counts as false"),
]


@pytest.mark.parametrize(("is_train", "filter_empty", "advice"), EMPTY)
def test_what_becomes_of_empty_images_is_what_the_config_says(is_train, filter_empty, advice, coco):
    findings = Findings()
    check_coco(coco[1], coco[0], findings, is_train=is_train, filter_empty=filter_empty)
    (found,) = findings
    assert advice in found.advice


def make_boxes(coco, change=list):
    """Twelve boxes in three images of 96 x 60, each changed; one touches the right edge, one the left one."""
    file, content = coco
    for image in content["images"]:
        image["height"] = 60
    boxes = [
        [1, 9, 20, 15],
        [60, 20, 36, 30],
        *([30 + 2 * i, 20 + i, 30 + 2 * i, 25] for i in range(10)),
    ]
    content["annotations"] = [
        {
            "id": i + 1,
            "image_id": i % 3 + 1,
            "category_id": i % 2 + 1,
            "bbox": change(x),
            "area": 9.0,
            "iscrowd": 0,
        }
        for i, x in enumerate(boxes)
    ]
    return file, content


FORMS = {
    "boxes that look like x0, y0, x1, y1": (
        lambda b: [b[0], b[1], b[0] + b[2], b[1] + b[3]],
        "as x0, y0, x1, y1, none",
    ),
    "boxes that look like centre x, centre y, width, height": (
        lambda b: [b[0] + b[2] / 2, b[1] + b[3] / 2, b[2], b[3]],
        "as centre x, centre y, width, height, none",
    ),
    "boxes that look like y, x, height, width": (
        lambda b: [b[1], b[0], b[3], b[2]],
        "as y, x, height, width, none",
    ),
    "boxes that do not go with the images": (
        lambda b: [3 * x for x in b],
        "of 12 boxes are outside of their image",
    ),
    "boxes that are fractions of the image": (
        lambda b: [x / 96 for x in b],
        "all of 12 boxes are within 0 to 1",
    ),
}


@pytest.mark.parametrize("what", FORMS)
def test_boxes_of_another_form_are_told_by_name_and_not_corrected(what, coco):
    change, place = FORMS[what]
    file, content = make_boxes(coco, change)
    (found,) = check(file, content).get("error")
    assert found.what == what and place in str(found) and str(file) in str(found)
    with pytest.raises(ValueError, match=what):
        fix_coco(content)


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


@pytest.mark.parametrize("what", GOOD)
def test_good_boxes_are_of_no_other_form(what, coco):
    file, content = coco
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
        for i, x in enumerate(GOOD[what])
    ]
    assert {x.what for x in check(file, content)} <= {
        "boxes that reach out of the image",
        "objects given more than once",
        "data sets with empty images",
    }


def test_objects_with_outlines_of_their_own_and_crowds_are_no_copies(coco):
    file, content = coco
    first = content["annotations"][0]
    content["annotations"] += [
        {**first, "id": 11, "segmentation": [[8, 10, 44, 10, 44, 46]]},
        *({**first, "id": 12 + i, "iscrowd": 1} for i in range(2)),
    ]
    assert check(file, content).exit_code == 0
    assert len(fix_coco(content)[0]["annotations"]) == len(content["annotations"])


def test_a_class_id_that_is_wrong_by_itself_makes_no_shift(coco):
    file, content = make_boxes(coco)
    content["categories"].append({"id": 3, "name": "unused"})
    content["annotations"][0]["category_id"] = 0
    assert [x.what for x in check(file, content).get("error")] == [
        "annotations of unknown categories"
    ]


def test_a_cut_object_is_no_larger_than_before(coco):
    _, content = coco
    content["annotations"][0].update(bbox=[80, 10, 40, 20], area=30)
    assert fix_coco(content)[0]["annotations"][0]["bbox"] == [80, 10, 16, 20]
    assert fix_coco(content)[0]["annotations"][0]["area"] == 30


def test_boxes_in_pixels_are_of_no_other_form(coco):
    file, content = make_boxes(coco)
    assert not check(file, content).get("error")
    content["annotations"][0]["bbox"] = [
        60,
        60,
        90,
        90,
    ]  # reaches out, and is no corner of anything
    assert [x.severity for x in check(file, content) if x.severity != "note"] == ["warning"]


@pytest.mark.parametrize(("shift", "words"), [(-1, "1 more"), (1, "1 less")])
def test_class_ids_that_are_shifted_are_told_and_not_corrected(shift, words, coco):
    file, content = make_boxes(coco)
    for annotation in content["annotations"]:
        annotation["category_id"] += shift
    (found,) = [x for x in check(file, content) if x.what == "category ids that are shifted"]
    assert found.severity == "error" and words in str(found)
    with pytest.raises(ValueError, match="category ids that are shifted"):
        fix_coco(content)


def test_text_that_is_a_number_becomes_one(coco):
    file, content = coco
    expected = json.loads(json.dumps(content["annotations"]))
    for annotation in content["annotations"]:
        annotation["image_id"], annotation["category_id"] = (
            str(annotation["image_id"]),
            str(annotation["category_id"]),
        )
        annotation["bbox"] = [str(x) for x in annotation["bbox"]]
    fixed, changes = fix_coco(content)
    assert fixed["annotations"] == expected and check(file, fixed).exit_code == 0
    assert "converted: image_id from text (4): annotation 1, 2, 3, 4" in changes


def test_a_form_that_is_likely_is_a_warning_and_not_corrected_either(coco):
    """Of boxes by their centres, few reach out of the image."""
    file, content = make_boxes(coco, lambda b: [max(b[0] - 4, 0) + b[2] / 2, 20, b[2], 25])
    (found,) = [x for x in check(file, content) if "look like" in x.what]
    assert found.severity == "warning" and "centre x" in found.what
    with pytest.raises(ValueError, match="boxes that look like centre x"):
        fix_coco(content)


def test_what_would_lose_much_is_refused(coco):
    _, content = make_boxes(coco)
    for annotation in content["annotations"][:6]:
        annotation["image_id"] = 77
    message = r"6 of 12 annotations would be removed, which is no correction: annotations of unknown images \(6\)"
    with pytest.raises(ValueError, match=message):
        fix_coco(content)


def test_a_file_that_breaks_off_is_named_with_the_place(tmp_path):
    write_coco(tmp_path)
    file, findings = tmp_path / "coco.json", Findings()
    text = file.read_text()
    file.write_text(text[: len(text) // 2])
    assert read_coco(file, findings) is None and findings.exit_code == 2
    assert f"of {len(text) // 2})" in str(next(iter(findings))) and str(file) in str(
        next(iter(findings))
    )
    file.write_text('{"images": []}')
    assert read_coco(file, findings) is None and "no list under categories, annotations" in str(
        list(findings)[1]
    )


@pytest.mark.parametrize(
    ("encoding", "message"),
    [("utf-8-sig", "without a byte order mark"), ("utf-16", "Save them as UTF-8")],
)
def test_an_encoding_that_pycocotools_cannot_read_is_told(encoding, message, coco):
    file, content = coco
    file.write_text(json.dumps(content), encoding=encoding)
    findings = Findings()
    assert read_coco(file, findings) is None
    assert message in str(next(iter(findings)))


def read(file, content: bytes):
    """The finding about an annotation file of that content."""
    file.write_bytes(content)
    findings = Findings()
    assert read_coco(file, findings) is None
    (found,) = findings
    assert found.severity == "error" and str(file) in str(found)
    return str(found)


@pytest.mark.parametrize(
    ("pack", "kind"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")]
)
def test_a_compressed_json_is_to_be_unpacked(pack, kind, tmp_path):
    found = read(tmp_path / "coco.json", pack(b'{"images": []}'))
    assert f"is {kind}-compressed" in found and "Unpack it" in found and "UTF-8" not in found


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("file,xmin,ymin,xmax,ymax\na.png,1,2,3,4\nb.png,5,6,7,8\n", "CSV"),
        ("a.png;1;2\nb.png;3;4\n", "CSV"),
        ("<annotation><size></size></annotation>", "XML or HTML"),
        ('{"id": 1}\n{"id": 2}\n', "JSON Lines"),
    ],
)
def test_an_annotation_file_of_another_format_is_named(text, kind, tmp_path):
    found = read(tmp_path / "coco.json", text.encode())
    assert f"looks like {kind}" in found and "Convert it to COCO" in found
    assert "damaged" not in found


def test_text_that_is_no_json_is_not_called_damaged(tmp_path):
    found = read(tmp_path / "coco.json", b"0 0.5 0.5 0.1 0.1\n")
    assert "damaged" not in found and "line 1" in found


def test_a_json_that_is_nested_too_deep_is_found(tmp_path):
    found = read(tmp_path / "coco.json", b"[" * 100_000 + b"]" * 100_000)
    assert "nested too deep" in found


FOR_A_PERSON = {x for x in FAULTS if x.startswith(("image", "file names", "categories"))} | {
    "without a usable annotation"
}


@pytest.mark.parametrize("what", FAULTS)
def test_what_can_be_corrected_is_corrected_in_a_copy(what, coco):
    file, content = coco
    FAULTS[what][0](content)
    before = json.dumps(content)
    fixed, changes = fix_coco(content)
    assert json.dumps(content) == before  # the original is as it was
    left = {x.what for x in check(file, fixed) if x.severity != "note"}
    assert bool(left) == (what in FOR_A_PERSON)
    if what not in FOR_A_PERSON:
        assert changes or what == "category ids have gaps"


@pytest.mark.parametrize(
    ("box", "fault"),
    [
        ([0, 0, 96, 96], None),
        ([-2, 0, 10, 10], "reach out"),
        ([-1, -0.5, 10, 10], None),
        ([0, 0, 97, 96], None),  # a pixel more is rounding
        ([0, 0, -5, 9], "without area"),
        ([96, 0, 5, 5], "outside"),
        ([0, 0, 1e30, 5], "four finite numbers"),
        ([0, 0, 5], "four finite numbers"),
        (None, "four finite numbers"),
    ],
)
def test_boxes(box, fault):
    found = describe_box_fault(box, {"width": 96, "height": 96})
    assert found is None if fault is None else fault in found


def test_images_are_decoded(tmp_path):
    files = write_images(tmp_path, suffix=".jpg")
    records = [{"file_name": str(x), "width": 96, "height": 96} for x in files]
    findings = Findings()
    check_images(records, findings)
    assert [(x.severity, x.what, x.places) for x in findings] == [
        ("note", "images of a single colour", [str(files[2])])
    ]
    findings = Findings()
    files[0].write_bytes(files[0].read_bytes()[:-200])
    files[1].write_bytes(b"")
    files[2].write_bytes(b"no image")
    cv2.imwrite(str(files[3]), cv2.imread(str(files[3]))[:50])
    check_images([*records, {"file_name": str(tmp_path / "none.jpg")}], findings)
    found = {x.what: str(x) for x in findings}
    assert len(found) == 4 and all(x.severity == "error" for x in findings)
    decoded = found["images that cannot be decoded"]
    assert "(2)" in decoded and "0.jpg: image file is truncated" in decoded and "2.jpg" in decoded
    assert (
        "1.jpg" in found["image files without content"]
        and "none.jpg" in found["images that do not exist"]
    )
    assert (
        "3.jpg is 96 x 50, the annotations say 96 x 96"
        in found["images of another size than the annotations say"]
    )


@pytest.mark.parametrize("name", ["a\0.png", "\ud800.png"])
def test_a_file_name_that_no_file_can_have_is_found(name):
    findings = Findings()
    record = {"file_name": name, "image_id": 7, "height": 96, "width": 96, "annotations": []}
    assert check_images([record], findings) == {}
    (found,) = findings
    assert found.what == "images with an invalid file name" and found.severity == "error"
    assert repr(name) in str(found) and "image 7" in str(found)


def test_pixels_of_more_than_8_bits_are_told(tmp_path):
    """Detectron2 would show a 16-bit image as white."""
    files = [tmp_path / "deep.png", tmp_path / "fractions.tiff", tmp_path / "shallow.png"]
    cv2.imwrite(str(files[0]), np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64))
    cv2.imwrite(str(files[1]), np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64))
    cv2.imwrite(str(files[2]), (np.arange(4096) % 256).astype(np.uint16).reshape(64, 64))
    for values in (
        ">u2",
        "<f4",
    ):  # big-endian, and floats that are whole: Detectron2 reads both as they are
        files.append(tmp_path / f"{values[1:]}.tiff")
        Image.fromarray((np.arange(4096) % 200).astype(values).reshape(64, 64)).save(files[-1])
        assert read_image(str(files[-1]), "RGB").max() == 199
    findings = Findings()
    check_images([{"file_name": str(x)} for x in files], findings)
    (found,) = findings
    assert (found.what, found.severity, found.count) == ("images of more than 8 bits", "error", 2)
    assert (
        "deep.png: mode I" in str(found)
        and "values from 0 to 65520" in str(found)
        and "fractions.tiff: mode F" in str(found)
    )


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_image_has_the_size_that_detectron2_gives_it(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.arange(40 * 60, dtype=np.uint8).reshape(40, 60)).save(
        tmp_path / "a.jpg", exif=exif
    )
    height, width, _ = read_image(str(tmp_path / "a.jpg"), "BGR").shape
    findings = Findings()
    check_images(
        [{"file_name": str(tmp_path / "a.jpg"), "width": width, "height": height}], findings
    )
    assert list(findings) == []


def test_images_of_a_test_set_that_are_trained_on_are_told(tmp_path):
    files = [str(x) for x in write_images(tmp_path / "train")]
    (tmp_path / "test").mkdir()
    copied = shutil.copy(files[1], tmp_path / "test" / "other.png")
    sets = [
        check_images([{"file_name": x} for x in some], Findings())
        for some in (files, [files[0], copied], files[2:])
    ]
    findings = Findings()
    check_overlap({"train": sets[0]}, {"test": sets[1]}, findings)
    (found,) = findings
    assert (
        found.severity == "warning"
        and found.count == 2
        and f"{copied} (test) is {files[1]} (train)" in str(found)
    )
    findings = Findings()
    check_overlap({"train": sets[1]}, {"test": sets[2]}, findings)
    assert list(findings) == []
    check_overlap({"train": sets[1]}, {"train": sets[1]}, findings)
    assert [x.severity for x in findings] == ["note"]


BOX = [10.0, 10.0, 40.0, 40.0]
OBJECTS = [
    ({"bbox": [np.float32(x) for x in BOX]}, None),
    ({"bbox": [np.int64(x) for x in BOX]}, None),
    ({"bbox": np.array(BOX), "bbox_mode": BoxMode.XYXY_ABS}, None),
    ({"bbox": np.array(BOX)}, "boxes that are arrays"),
    ({"bbox": None}, "objects without a field"),
    ({"bbox": ["a", 2, 3, 4]}, "boxes that are not four finite numbers"),
    ({"bbox": [1, 2, 3]}, "boxes that are not four finite numbers"),
    ({"bbox": BOX, "bbox_mode": BoxMode.XYWH_REL}, "boxes that are not four finite numbers"),
    ({"category_id": 2}, "objects of unknown classes"),
]


@pytest.mark.parametrize(("changes", "what"), OBJECTS)
def test_objects_of_data_sets_by_code(changes, what):
    annotation = {"bbox": BOX, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, **changes}
    good = {"bbox": BOX, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
    record = {
        "file_name": "a.png",
        "image_id": 1,
        "height": 96,
        "width": 96,
        "annotations": [annotation, good],
    }
    findings = Findings()
    check_records([record], "own", 2, findings)
    assert [x.what for x in findings if x.severity != "note"] == ([what] if what else [])


def test_image_ids_are_asked_of_test_sets_only():
    """To list an image twice is a way to show it more often."""
    annotation = {"bbox": BOX, "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1}
    record = {
        "file_name": "a.png",
        "image_id": 1,
        "height": 96,
        "width": 96,
        "annotations": [annotation],
    }
    for is_test in (True, False):
        findings = Findings()
        check_records(
            [record, record, {**record, "image_id": None}], "own", 2, findings, is_test=is_test
        )
        assert len(findings.get("error")) == 2 * is_test
