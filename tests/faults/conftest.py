"""`fault` puts a row into the table of faults; `--faults-table FILE` prints and writes it."""

import pytest

from tests.faults.copies import copy_cells


@pytest.fixture
def fault(record_property):
    """A function that records a row: its number, the fault, and both outcomes."""

    def tell(row: int, what: str, *, stock: str, ours: str, seen: str = "") -> None:
        values = {
            "row": row,
            "fault": what,
            "detectron2": stock,
            "focal_det": ours,
            "seen_with_detectron2": seen,
        }
        record_property("fault", values)

    return tell


@pytest.fixture
def cells(tmp_path, clean_catalog):
    return copy_cells(tmp_path)
