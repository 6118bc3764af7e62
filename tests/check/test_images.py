"""Image files: decoded as Detectron2 does it, and compared between sets."""

import shutil

import cv2
import numpy as np
import pytest
from detectron2.data.detection_utils import read_image
from PIL import Image

from focal_det.check import data_rules
from focal_det.check.findings import Findings
from focal_det.check.images import check_images, check_overlap
from tests.check.coco_files import get_rules
from tests.data.make_data import write_images


def test_flat_image_is_noted(tmp_path):
    files = write_images(tmp_path, suffix=".jpg")
    findings = Findings()
    check_images([{"file_name": str(x), "width": 96, "height": 96} for x in files], findings)
    (found,) = findings
    assert found.rule is data_rules.FLAT_IMAGE and found.severity == "note"
    assert found.places == [str(files[2])]


def test_many_flat_images_are_a_warning(tmp_path):
    files = [str(tmp_path / f"{i}.png") for i in range(2)]
    for value, file in enumerate(files):
        cv2.imwrite(file, np.full((8, 8), value, np.uint8))
    findings = Findings()
    check_images([{"file_name": x} for x in files], findings)
    assert get_rules(findings, "warning") == [data_rules.FLAT_IMAGE]


def test_broken_image_files_are_found(tmp_path):
    files = write_images(tmp_path, suffix=".jpg")
    records = [{"file_name": str(x), "width": 96, "height": 96} for x in files]
    files[0].write_bytes(files[0].read_bytes()[:-200])
    files[1].write_bytes(b"")
    files[2].write_bytes(b"no image")
    cv2.imwrite(str(files[3]), cv2.imread(str(files[3]))[:50])
    findings = Findings()
    check_images([*records, {"file_name": str(tmp_path / "none.jpg")}], findings)
    found = {x.rule: str(x) for x in findings}
    assert len(found) == 4 and len(findings.get("error")) == 4
    undecodable = found[data_rules.UNDECODABLE_IMAGE]
    assert "(2)" in undecodable and "2.jpg" in undecodable
    assert "0.jpg: image file is truncated" in undecodable
    assert "1.jpg" in found[data_rules.EMPTY_IMAGE_FILE]
    assert "none.jpg" in found[data_rules.MISSING_IMAGE]
    size = found[data_rules.OTHER_IMAGE_SIZE]
    assert "3.jpg is 96 x 50, but the annotations say 96 x 96" in size


@pytest.mark.parametrize("name", ["a\0.png", "\ud800.png"])
def test_impossible_file_name_is_found(name):
    findings = Findings()
    record = {"file_name": name, "image_id": 7, "height": 96, "width": 96, "annotations": []}
    assert check_images([record], findings) == {}
    (found,) = findings
    assert found.rule is data_rules.IMPOSSIBLE_FILE_NAME and found.severity == "error"
    assert repr(name) in str(found) and "image 7" in str(found)


def test_pixels_of_more_than_8_bits_are_found(tmp_path):
    """Detectron2 would show a 16-bit image as white."""
    files = [tmp_path / "deep.png", tmp_path / "fractions.tiff", tmp_path / "shallow.png"]
    cv2.imwrite(str(files[0]), np.arange(0, 65536, 16, dtype=np.uint16).reshape(64, 64))
    cv2.imwrite(str(files[1]), np.linspace(0, 1, 4096, dtype=np.float32).reshape(64, 64))
    cv2.imwrite(str(files[2]), (np.arange(4096) % 256).astype(np.uint16).reshape(64, 64))
    # Big-endian, and whole floats: Detectron2 reads both correctly.
    for values in (">u2", "<f4"):
        files.append(tmp_path / f"{values[1:]}.tiff")
        Image.fromarray((np.arange(4096) % 200).astype(values).reshape(64, 64)).save(files[-1])
        assert read_image(str(files[-1]), "RGB").max() == 199
    findings = Findings()
    check_images([{"file_name": str(x)} for x in files], findings)
    (found,) = findings
    assert found.rule is data_rules.DEEP_PIXELS and found.count == 2
    assert "deep.png: mode I" in str(found) and "values from 0 to 65520" in str(found)
    assert "fractions.tiff: mode F" in str(found)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_image_has_the_size_detectron2_gives_it(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = tmp_path / "a.jpg"
    Image.fromarray(np.arange(40 * 60, dtype=np.uint8).reshape(40, 60)).save(file, exif=exif)
    height, width, _ = read_image(str(file), "BGR").shape
    findings = Findings()
    check_images([{"file_name": str(file), "width": width, "height": height}], findings)
    assert list(findings) == []


def test_test_images_that_are_trained_on_are_found(tmp_path):
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
    assert found.rule is data_rules.TEST_IMAGE_TRAINED_ON and found.count == 2
    assert f"{copied} (test) is the same as {files[1]} (train)" in str(found)
    findings = Findings()
    check_overlap({"train": sets[1]}, {"test": sets[2]}, findings)
    assert list(findings) == []
    check_overlap({"train": sets[1]}, {"train": sets[1]}, findings)
    assert get_rules(findings) == [data_rules.TEST_SET_TRAINED_ON]
