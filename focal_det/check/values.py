"""Which values of a JSON file can be ids."""

from typing import Any

from focal_det.data.boxes import is_number

# Floats above it skip whole numbers, so that two ids may become one.
_MAX_EXACT = 2**53


def is_whole(value: Any) -> bool:
    """Whether a value is a whole number of whatever type: 2.0 is as good an id as 2."""
    if type(value) is int:
        return True
    return is_number(value) and abs(value) < _MAX_EXACT and value == int(value)


def is_id(value: Any) -> bool:
    """Whether a value can be the id of an image: text or a whole number."""
    return isinstance(value, str) or is_whole(value)
