"""The digits that the shipped model is used on."""

import pytest

from focal_det.data.digits import build_digits


@pytest.fixture(scope="session")
def records():
    """Dataset dicts of four images of digits_val."""
    from detectron2.data import DatasetCatalog

    build_digits("val")
    return DatasetCatalog.get("digits_val")[:4]
