"""The rows of a sweep, of the paper's tables or of a grid of keys: each is a base config and the keys that differ from it."""

import ast
import itertools
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode

from focal_det.config import find_config_file, merge_options
from focal_det.env import load_config
from focal_det.messages import describe_unknown
from focal_det.model_zoo import get_config_file
from focal_det.modeling.build import flatten_config

BASES = {name: f"PaperTables/{name}.yaml" for name in ("coco", "digits", "bccd")}
_PAPER_SIZE = 600  # pixels, of the paper's ablations
_ASPECT_RATIOS = {1: [1.0], 3: [0.5, 1.0, 2.0]}
_RESNET_50 = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"


@dataclass(frozen=True, eq=False)
class Row:
    """One row of a table.

    Attributes:
        table: such as "1b"; "grid" for a grid.
        name: what the row is called in its table.
        overrides: config keys and values on top of the base.
        paper: what the paper has: "AP", "AP50", "AP75" in percent, "ms" per image.
    """

    table: str
    name: str
    overrides: dict[str, Any]
    paper: dict[str, float] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The row's name as a file name."""
        return re.sub(r"[^\w.]+", "-", f"{self.table} {self.name}").strip("-").lower()


def get_base_file(base: str) -> Path:
    """The config of a base by name, or any other config, see `find_config_file`.

    Raises:
        FileNotFoundError: neither; names the known bases.
    """
    if base in BASES:
        return Path(get_config_file(BASES[base]))
    try:
        return Path(find_config_file(base))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"--base: {describe_unknown('base', base, BASES)} Or give the path of a config."
        ) from None


def read_table(table: str, base: str) -> list[Row]:
    """The rows of a table of the paper that make sense on a base.

    Depths are those of the paper where the base starts from ImageNet's R-50, else the base's own; image sizes are scaled with the
    base's, which stands for the paper's 600 pixels.

    Raises:
        ValueError: no such table, or none of its rows is for the base.
    """
    content = json.loads(Path(get_config_file("PaperTables/rows.json")).read_text())
    tables = list(dict.fromkeys(x["table"] for x in content))
    if table not in tables:
        raise ValueError(f"--table: {describe_unknown('table', table, tables)}")
    cfg = load_config(get_base_file(base))
    rows = [x for x in content if x["table"] == table and base in x.get("bases", [base])]
    if not rows:
        raise ValueError(f"--table {table} has no row for --base {base}: its rows are for coco")
    return [
        Row(table, x["row"], {**_get_relative_overrides(x, cfg), **x["set"]}, x["paper"])
        for x in rows
    ]


def _get_relative_overrides(row: dict[str, Any], base: CfgNode) -> dict[str, Any]:
    """What a row says of anchors, depth and image size, in the terms of the base."""
    overrides: dict[str, Any] = {}
    if "anchors" in row:
        num_scales, num_aspects = row["anchors"]
        smallest = [sizes[0] for sizes in base.MODEL.ANCHOR_GENERATOR.SIZES]
        overrides["MODEL.ANCHOR_GENERATOR.SIZES"] = [
            [x * 2 ** (i / num_scales) for i in range(num_scales)] for x in smallest
        ]
        overrides["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"] = [_ASPECT_RATIOS[num_aspects]]
    if "depth" in row and base.MODEL.WEIGHTS == _RESNET_50:
        weights = _RESNET_50.replace("R-50", f"R-{row['depth']}")
        overrides |= {"MODEL.RESNETS.DEPTH": row["depth"], "MODEL.WEIGHTS": weights}
    if "scale" in row:
        for key in ("MIN_SIZE_TRAIN", "MAX_SIZE_TRAIN", "MIN_SIZE_TEST", "MAX_SIZE_TEST"):
            sizes = base.INPUT[key]
            scaled = [
                round(x * row["scale"] / _PAPER_SIZE)
                for x in (sizes if isinstance(sizes, tuple) else [sizes])
            ]
            overrides[f"INPUT.{key}"] = scaled if isinstance(sizes, tuple) else scaled[0]
    return overrides


def make_grid(grid: Sequence[str], base: CfgNode) -> list[Row]:
    """All combinations of `KEY=v1,v2` words; where the base has a float, 1 is 1.0.

    Raises:
        ValueError: a word of another form.
    """
    axes, base_values = [], flatten_config(base)
    for word in grid:
        key, equals, values = word.partition("=")
        if not (key and equals and values):
            raise ValueError(f"--grid takes KEY=value,value..., got {word!r}")
        convert = float if isinstance(base_values.get(key), float) else lambda x: x
        axes.append([(key, convert(parse_value(x))) for x in values.split(",")])
    rows = []
    for combination in itertools.product(*axes):
        name = ", ".join(f"{key.split('.')[-1]} {value}" for key, value in combination)
        rows.append(Row("grid", name, dict(combination)))
    return rows


def parse_value(value: str) -> Any:
    """A Python literal, or the text itself."""
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def merge_row(cfg: CfgNode, row: Row) -> CfgNode:
    """The config of a row: a copy of the base's with the row's keys."""
    cfg = cfg.clone()
    merge_options(cfg, [str(x) for pair in row.overrides.items() for x in pair])
    return cfg


def write_config(row: Row, base_file: Path, options: Sequence[str], file: Path) -> None:
    """Write a row as a yaml with the base as `_BASE_`, for any program of Detectron2's.

    Args:
        options: KEY VALUE pairs of all rows.
    """
    content: dict[str, Any] = {
        "_BASE_": os.path.relpath(base_file.resolve(), file.parent.resolve())
    }
    pairs = {
        **{key: parse_value(value) for key, value in zip(options[::2], options[1::2])},
        **row.overrides,
    }
    for key, value in pairs.items():
        node = content
        *parents, last = key.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = list(value) if isinstance(value, tuple) else value
    head = (
        f"# Table {row.table} of the paper: {row.name}\n"
        if row.table != "grid"
        else f"# {row.name}\n"
    )
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(head + yaml.safe_dump(content, sort_keys=False))
