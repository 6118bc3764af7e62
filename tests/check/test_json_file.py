"""Annotation files that are not COCO JSON: what they are in its place."""

import bz2
import gzip
import json
import lzma

import pytest

from focal_det.check import data_rules
from focal_det.check.findings import Findings
from focal_det.check.json_file import read_coco


def read(file, content: bytes):
    """The finding about an annotation file of that content."""
    file.write_bytes(content)
    findings = Findings()
    assert read_coco(file, findings) is None
    (found,) = findings
    assert found.severity == "error" and str(file) in str(found)
    return found


def test_damaged_file_is_named_with_the_place(coco):
    file, _ = coco
    text = file.read_bytes()
    found = read(file, text[: len(text) // 2])
    assert found.rule is data_rules.DAMAGED_JSON
    assert f"of {len(text) // 2})" in str(found)


def test_missing_lists_are_named(coco):
    found = read(coco[0], b'{"images": []}')
    assert found.rule is data_rules.MISSING_LIST
    assert "no list under categories, annotations" in str(found)


@pytest.mark.parametrize(
    ("encoding", "rule"),
    [("utf-8-sig", data_rules.BYTE_ORDER_MARK), ("utf-16", data_rules.NOT_UTF8)],
)
def test_encoding_that_pycocotools_cannot_read_is_found(encoding, rule, coco):
    file, content = coco
    assert read(file, json.dumps(content).encode(encoding)).rule is rule


@pytest.mark.parametrize(
    ("pack", "kind"), [(gzip.compress, "gzip"), (bz2.compress, "bzip2"), (lzma.compress, "xz")]
)
def test_compressed_file_must_be_unpacked(pack, kind, tmp_path):
    found = read(tmp_path / "coco.json", pack(b'{"images": []}'))
    assert found.rule is data_rules.COMPRESSED_FILE
    assert f"is {kind}-compressed" in str(found) and "Unpack it" in found.advice


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("file,xmin,ymin,xmax,ymax\na.png,1,2,3,4\nb.png,5,6,7,8\n", "CSV"),
        ("a.png;1;2\nb.png;3;4\n", "CSV"),
        ("<annotation><size></size></annotation>", "XML or HTML"),
        ('{"id": 1}\n{"id": 2}\n', "JSON Lines"),
    ],
)
def test_other_file_format_is_named(text, kind, tmp_path):
    found = read(tmp_path / "coco.json", text.encode())
    assert found.rule is data_rules.OTHER_FILE_FORMAT
    assert f"looks like {kind}" in str(found)


def test_text_that_is_not_json_is_not_called_damaged(tmp_path):
    found = read(tmp_path / "coco.json", b"0 0.5 0.5 0.1 0.1\n")
    assert found.rule is data_rules.NOT_JSON and "line 1" in str(found)


def test_deeply_nested_json_is_found(tmp_path):
    found = read(tmp_path / "coco.json", b"[" * 100_000 + b"]" * 100_000)
    assert found.rule is data_rules.DEEPLY_NESTED


def test_entry_that_is_not_a_mapping_is_left_out(coco):
    file, content = coco
    content["images"].append("stray")
    file.write_text(json.dumps(content))
    findings = Findings()
    assert len(read_coco(file, findings)["images"]) == len(content["images"]) - 1
    (found,) = findings
    assert found.rule is data_rules.NOT_A_MAPPING and '"stray" under images' in str(found)
