"""Colours and axes that all figures share."""

from matplotlib import colormaps
from matplotlib.axes import Axes

# Okabe and Ito's palette, which color-blind readers tell apart on white. Their yellow is left out:
# it is too light for a thin line.
BLUE = "#0072B2"
VERMILION = "#D55E00"
GREEN = "#009E73"
PURPLE = "#CC79A7"
BLACK = "#000000"
ORANGE = "#E69F00"
SKY_BLUE = "#56B4E9"
LIGHT_GRAY = "#999999"
COLORS = (BLUE, VERMILION, GREEN, PURPLE, BLACK, ORANGE, SKY_BLUE, LIGHT_GRAY)

GRAY = "0.4"  # notes, and lines that only help to read the others
SHADE = {"color": "0.5", "alpha": 0.1, "linewidth": 0, "zorder": 0}
_NUM_CLASS_COLORS = 10


def get_class_color(class_id: int) -> tuple[float, float, float]:
    """RGB in [0, 1] of a class, the same in every picture; it repeats after ten classes."""
    # The palette above has eight colours, and its black is lost in dark images.
    return colormaps["tab10"](class_id % _NUM_CLASS_COLORS)[:3]


def draw_grid(axes: Axes) -> None:
    """Thin grid lines behind everything else."""
    axes.grid(alpha=0.3)
    axes.set_axisbelow(True)
