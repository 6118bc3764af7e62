"""The telemetry of a run against iterations, for each stage of its detector, as a figure."""

import re
from typing import Any, Optional

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from .training_curves import LINES, draw_series, finish_axes

# A metric name from `modeling.telemetry.put_telemetry`; a cascade puts its stage before it.
_NAME = re.compile(r"(?:stage(\d+)/)?focal_det/(?:(rpn|roi_head)/)?(\w+)")
_STAGES = {"rpn": "RPN", "roi_head": "ROI head", None: "anchors"}
# Metrics of `modeling.telemetry.compute_telemetry`, each with the title of its panel.
_FIGURES = {
    "share_of_positives": "share of the positives in the loss",
    "share_of_hardest_negatives": "share of the hardest 1 % of negatives",
    "mean_p_t": "mean score of the positives",
    "prior_distance": "log-odds of the mean score\nbeyond those of the prior",
    "max_abs_logit": "largest |logit|",
    "normalizer": "divisor of the losses",
}
_NUM_COLUMNS = 3


def make_telemetry_figure(metrics: list[dict[str, Any]]) -> Optional[Figure]:
    """A panel for each metric of the classification loss, with a line for each stage.

    None for a run without telemetry.

    Args:
        metrics: from `read_metrics`.
    """
    keys = sorted({key for line in metrics for key in line})
    matches = [match for key in keys if (match := _NAME.fullmatch(key)) and match[3] in _FIGURES]
    if not matches:
        return None
    num_rows = len(_FIGURES) // _NUM_COLUMNS
    figure = Figure(figsize=(11, 3.2 * num_rows), dpi=100, layout="constrained")
    panels = dict(zip(_FIGURES, figure.subplots(num_rows, _NUM_COLUMNS).flat))
    # A stage has the same line style in all panels, even if its loss lacks some of the metrics.
    stages = {_describe_stage(x): x for x in matches}
    # The RPN first, as in the detector.
    labels = sorted(stages, key=lambda x: stages[x][2] != "rpn")
    styles: dict[str, dict[str, Any]] = dict(zip(labels, LINES))
    for match in matches:
        label = _describe_stage(match)
        draw_series(panels[match[3]], metrics, match[0], label=label, **styles[label])
    for name, axes in panels.items():
        axes.set_title(_FIGURES[name], fontsize=9)
        finish_axes(axes)
    if len(labels) > 1:
        handles = [Line2D([], [], label=x, **styles[x]) for x in labels]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(labels), fontsize=9)
    return figure


def _describe_stage(match: re.Match) -> str:
    """The stage of a metric, for people."""
    if match[1] is None:
        return _STAGES[match[2]]
    return f"{_STAGES[match[2]]}, stage {match[1]}"
