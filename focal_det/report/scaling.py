"""How time and memory of a loss grow with the number of anchors and of classes."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

# Colors of Okabe and Ito, which color-blind readers tell apart.
_COLORS = ("#0072B2", "#999999", "#D55E00", "#009E73", "#CC79A7", "#000000")


def draw_scaling(content: dict[str, Any], out_file: Path) -> None:
    """Draw median time and peak memory of the cases that say what grows from one to the next, on logarithmic axes.

    Args:
        content: of a json of `focal-det bench loss`.
        out_file: picture to write; the suffix decides the format.
    """
    figure = Figure(figsize=(11, 8), layout="constrained")
    conditions = content["conditions"]
    figure.suptitle(
        f"Focal loss and its gradient: {conditions['device']}, {conditions['threads']} threads, {conditions['dtype']}"
    )
    for column, quantity in zip(figure.subplots(2, 2).T, ("anchors", "classes")):
        cases = [x for x in content["results"] if x.get("scaling") == quantity]
        fixed = "classes" if quantity == "anchors" else "anchors"
        for name, color in zip(cases[0]["contenders"], _COLORS):
            is_limit = name.startswith("copy")
            style = (
                {"color": "black", "linestyle": "--", "linewidth": 1}
                if is_limit
                else {"color": color, "marker": "o", "markersize": 4}
            )
            for axis, key, unit in zip(column, ("median_seconds", "peak_bytes"), (1e-3, 1e6)):
                points = [
                    (x[quantity], x["contenders"][name][key] / unit)
                    for x in cases
                    if "error" not in x["contenders"][name]
                ]
                axis.loglog(*zip(*points), label=f"{name} (limit)" if is_limit else name, **style)
        sizes = [x[quantity] for x in cases]
        for axis, label in zip(column, ("median time (ms)", "peak memory (MB)")):
            axis.set_xticks(sizes, [f"{x:,}" for x in sizes])
            axis.minorticks_off()
            axis.set_xlabel(f"{quantity} (with {cases[0][fixed]:,} {fixed})")
            axis.set_ylabel(label)
            axis.grid(True, color="0.9")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    figure.savefig(out_file, dpi=110)
