"""The results of `focal-det bench`: a table per case, and how time and memory of a loss grow."""

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import BLACK, BLUE, GREEN, LIGHT_GRAY, PURPLE, VERMILION

# Gray is for the second contender, "plain path": our own loss without its fast path.
_COLORS = (BLUE, LIGHT_GRAY, VERMILION, GREEN, PURPLE, BLACK)
_LIMIT = "copy"  # first word of a contender that no other can beat
_QUANTITIES = {
    "median_seconds": ("median time (ms)", 1e-3),
    "peak_bytes": ("peak memory (MB)", 1e6),
}


def make_timing_table(case: dict[str, Any], ours: str) -> str:
    """Lines for a terminal, one per contender: time, ratio to ours with its quartiles, memory.

    Args:
        case: an entry of "results" in a json of `focal-det bench`.
        ours: the contender that the others are compared with.
    """
    contenders = case["contenders"]
    width = max(map(len, contenders))
    has_unit = any(x.get("peak_units") is not None for x in contenders.values())
    memory = "peak memory / logits" if has_unit else "peak memory (MB)"
    head = f"  {'':<{width}}  {'median (ms)':>12}  {'x ours':>8}  {'quartiles':>13}  {memory:>20}"
    lines = [case["case"], head]
    for name, values in contenders.items():
        if "error" in values:
            lines.append(f"  {name:<{width}}  {values['error']}")
            continue
        milliseconds = 1000 * values["median_seconds"]
        ratio = ""
        spread = ""
        if values["ratio"] is not None:
            ratio = f"{values['ratio']:.2f}"
        if values["ratio"] is not None and name != ours:
            spread = "{:.2f} - {:.2f}".format(*values["quartiles"])
        line = f"  {name:<{width}}  {milliseconds:>12.1f}  {ratio:>8}  {spread:>13}"
        lines.append(f"{line}  {_format_memory(values):>20}")
    if "largest_batch" in case:  # measured on a GPU only
        lines.append(f"  largest batch that fits: {case['largest_batch']}")
    return "\n".join(lines)


def _format_memory(values: dict[str, Any]) -> str:
    if values["peak_units"] is not None:
        return f"{values['peak_units']:.2f}"
    if values["peak_bytes"] is not None:
        return f"{values['peak_bytes'] / 1e6:.2f}"
    return ""


def make_scaling_figure(content: dict[str, Any]) -> Figure:
    """Median time and peak memory of cases of growing size, on logarithmic axes.

    Args:
        content: of a json of `focal-det bench loss`.
    """
    figure = Figure(figsize=(11, 8), layout="constrained")
    conditions = f"{content['device']}, {content['threads']} threads, {content['dtype']}"
    figure.suptitle(f"Focal loss and its gradient: {conditions}")
    columns = figure.subplots(2, 2).T
    for column, size, fixed in zip(columns, ("anchors", "classes"), ("classes", "anchors")):
        cases = [x for x in content["results"] if x.get("scaling") == size]
        sizes = [x[size] for x in cases]
        for axes, key in zip(column, _QUANTITIES):
            label, _ = _QUANTITIES[key]
            _draw_contenders(axes, cases, size, key)
            axes.set_xticks(sizes, [f"{x:,}" for x in sizes])
            axes.minorticks_off()
            axes.set_xlabel(f"{size} (with {cases[0][fixed]:,} {fixed})")
            axes.set_ylabel(label)
            axes.grid(True, color="0.9")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _draw_contenders(axes: Axes, cases: list[dict[str, Any]], size: str, key: str) -> None:
    """One line per contender; cases in which it failed are left out."""
    _, unit = _QUANTITIES[key]
    for name, color in zip(cases[0]["contenders"], _COLORS):
        style = {"label": name, "color": color, "marker": "o", "markersize": 4}
        if name.startswith(_LIMIT):
            style = {
                "label": f"{name} (limit)",
                "color": "black",
                "linestyle": "--",
                "linewidth": 1,
            }
        worked = [x for x in cases if "error" not in x["contenders"][name]]
        values = [x["contenders"][name][key] / unit for x in worked]
        axes.loglog([x[size] for x in worked], values, **style)
