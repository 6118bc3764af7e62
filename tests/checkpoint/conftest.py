"""A small real data set, shared with the tests of the faults."""

import pytest

from tests.faults.copies import DigitsCopy


@pytest.fixture
def digits(tmp_path, clean_catalog):
    return DigitsCopy(tmp_path)
