"""Fixtures of the checks."""

import json

import pytest

from tests.data.make_data import write_coco


@pytest.fixture
def coco(tmp_path):
    """A correct COCO JSON: its file and content."""
    write_coco(tmp_path)
    return tmp_path / "coco.json", json.loads((tmp_path / "coco.json").read_text())
