"""What a usable box is: one definition for the loaders, the checks and the corrections."""

import enum
import math
import numbers
from collections.abc import Sequence
from typing import Any, Optional

MAX_SIDE = 1e6  # pixels; no image has a larger coordinate
_SLACK = 1  # pixel beyond the image, allowed for rounding


class BoxFault(enum.Enum):
    """Faults of a box. A CUT box, which reaches beyond the image, is still usable."""

    NOT_FINITE = "not four finite numbers between -MAX_SIDE and MAX_SIDE"
    NO_AREA = "width or height of 0 or less"
    OUTSIDE = "no overlap with the image"
    CUT = "more than a pixel beyond the image"


def find_box_fault(box: Any, size: Optional[tuple[float, float]] = None) -> Optional[BoxFault]:
    """The first fault of a box; None for a good one.

    Args:
        box: x, y, width and height in pixels, as read from a file: it may be anything.
        size: width and height of its image in pixels; without it, only the box itself is checked.
    """
    # Lists are by far the most frequent; the check for the abstract class takes longer.
    if type(box) is not list and not isinstance(box, Sequence):
        return BoxFault.NOT_FINITE
    if len(box) != 4 or not all(is_number(x) and -MAX_SIDE <= x <= MAX_SIDE for x in box):
        return BoxFault.NOT_FINITE
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return BoxFault.NO_AREA
    if size is None:
        return None
    right, bottom = size
    if x >= right or y >= bottom or x + width <= 0 or y + height <= 0:
        return BoxFault.OUTSIDE
    if min(x, y) < -_SLACK or x + width > right + _SLACK or y + height > bottom + _SLACK:
        return BoxFault.CUT
    return None


def is_usable(box: Any, size: Optional[tuple[float, float]] = None) -> bool:
    """Whether an object with this box can be trained on; arguments as for `find_box_fault`."""
    return find_box_fault(box, size) in (None, BoxFault.CUT)


def is_within(corners: Sequence[float], size: tuple[float, float]) -> bool:
    """Whether x0, y0, x1, y1 are the corners of a box in an image of this width and height.

    As for `find_box_fault`, a box may reach a pixel beyond the image.
    """
    x0, y0, x1, y1 = corners
    right, bottom = size
    return -_SLACK <= x0 < x1 <= right + _SLACK and -_SLACK <= y0 < y1 <= bottom + _SLACK


def is_number(value: Any) -> bool:
    """Whether a value is a finite real number, of any type except bool."""
    kind = type(value)
    # The check for the abstract class takes ten times as long, and most values are int or float.
    is_real = kind in (int, float) or (kind is not bool and isinstance(value, numbers.Real))
    return is_real and -math.inf < value < math.inf
