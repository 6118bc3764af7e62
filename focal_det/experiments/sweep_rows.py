"""The rows of a sweep: each is a config and the keys that differ from it.

They come from a grid of keys or from a rows file, a json object with two lists:

    "rows": objects with "table"; "row", the row's name; "config", a file (relative to the rows
        file) or a pattern such as "configs/*.yaml" that stands for one row per file, named by its
        stem; "set", keys and values; "paper", figures to compare with. Rows without "config" are
        put on the base of the command line. "bases", "anchors", "depth" and "scale" are for the
        paper's tables, see `read_table`.
    "start": objects with "file", weights that rows start from and that are made when they are
        missing; "keep", see `Start`; "train", a config (relative to the rows file), and "set". A
        shipped model needs none: see `ZooPathHandler`.
"""

import ast
import glob
import itertools
import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from detectron2.config import CfgNode

from focal_det.config import find_config_file, get_config_file, merge_options
from focal_det.env import load_config
from focal_det.imbalance.config_file import write_config
from focal_det.messages import describe_unknown, parse_value
from focal_det.modeling.build import flatten_config

PAPER_ROWS = "PaperTables/rows.json"
BASES = {name: f"PaperTables/{name}.yaml" for name in ("coco", "digits", "bccd")}
_PAPER_SIZE = 600  # pixels, of the paper's ablations
_ASPECT_RATIOS = {1: [1.0], 3: [0.5, 1.0, 2.0]}
# Numbers of scales and aspect ratios that a row may ask for, those of the paper's table 1c.
_ANCHORS = [[scales, aspects] for scales in (1, 2, 3, 4) for aspects in _ASPECT_RATIOS]
# "depth" applies only to bases that start from these weights: R-101 weights exist beside them.
_RESNET_50 = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
_SIZE_KEYS = ("MIN_SIZE_TRAIN", "MAX_SIZE_TRAIN", "MIN_SIZE_TEST", "MAX_SIZE_TEST")
_ROW_KEYS = {"table", "row", "config", "set", "paper", "bases", "anchors", "depth", "scale"}
_START_KEYS = {"file", "keep", "train", "set"}


# eq=False: rows are keys of dicts, and the dicts they hold cannot be hashed.
@dataclass(frozen=True, eq=False)
class Row:
    """One row of a table.

    Attributes:
        table: such as "1b"; "grid" for a grid.
        name: of the row in its table.
        config: file that the row starts from.
        overrides: config keys and values on top of it.
        paper: the paper's "AP", "AP50", "AP75" in percent and "ms" per image, where it has them.
    """

    table: str
    name: str
    config: Path
    overrides: dict[str, Any]
    paper: dict[str, float] = field(default_factory=dict)

    @property
    def slug(self) -> str:
        """The row's name as a file name."""
        return re.sub(r"[^\w.-]+", "-", f"{self.table} {self.name}").strip("-").lower()


@dataclass(frozen=True, eq=False)
class Start:
    """Weights that rows start from, if their MODEL.WEIGHTS is this file.

    Attributes:
        file: made when it is missing and a row needs it.
        keep: prefix of the parameters that are kept of a model, such as "backbone.".
        row: the config to train the model with.
    """

    file: Path
    keep: str
    row: Row


@dataclass(frozen=True, eq=False)
class Sweep:
    """The rows that one command runs.

    Attributes:
        name: of the base, or of the folder that the rows file is in.
        tables: rows by table.
        starts: weights that rows may start from.
    """

    name: str
    tables: dict[str, list[Row]]
    starts: list[Start]


def read_sweep(
    *,
    tables: Optional[Sequence[str]] = None,
    rows_file: Optional[Path] = None,
    grid: Optional[Sequence[str]] = None,
    base: Optional[str] = None,
) -> Sweep:
    """The rows of tables of the paper, of a rows file or of a grid.

    Args:
        tables: of the rows file if there is one, and else of the paper; None for all of the file.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: something is wrong with the arguments or the file; says what.
    """
    if rows_file is not None:
        rows = read_rows(rows_file, base)
        for table in tables or ():
            _check_table(table, rows)
        chosen = {x: rows[x] for x in tables or rows}
        return Sweep(base or rows_file.resolve().parent.name, chosen, read_starts(rows_file))
    if (tables is None) == (grid is None):
        raise ValueError("either --table, --rows or --grid is required")
    # A rows file may have a config in each row; tables and grids need one base for all.
    base = _require_base(base)
    # A grid may use one of the paper's bases, which need their start weights.
    starts = read_starts(Path(get_config_file(PAPER_ROWS)))
    if grid is not None:
        return Sweep(base, {"grid": make_grid(grid, get_base_file(base))}, starts)
    return Sweep(base, {x: read_table(x, base) for x in tables or ()}, starts)


def _check_table(table: str, known: Collection[str]) -> None:
    if table not in known:
        raise ValueError(f"--table: {describe_unknown('table', table, known)}")


def _require_base(base: Optional[str]) -> str:
    if base is None:
        raise ValueError(f"--base is required: {', '.join(BASES)}, or the path of a config")
    return base


def get_base_file(base: str) -> Path:
    """The config of a base by name, or any other config, see `find_config_file`.

    Raises:
        FileNotFoundError: neither; names the known bases.
        ValueError: a URL.
    """
    if base in BASES:
        return Path(get_config_file(BASES[base]))
    if "://" in base:
        raise ValueError(f"--base must be a file, got {base}; download it first")
    try:
        return Path(find_config_file(base))
    except FileNotFoundError:
        raise FileNotFoundError(
            f"--base: {describe_unknown('base', base, BASES)} Or give the path of a config."
        ) from None


def read_table(table: str, base: str) -> list[Row]:
    """The rows of a table of the paper that make sense on a base.

    The keys of a row that only these tables need:
        "bases": bases that the row is run on (default: all).
        "anchors": number of scales and number of aspect ratios.
        "depth": ResNet depth; ignored unless the base starts from ImageNet's R-50.
        "scale": image size in the paper, where 600 px corresponds to the base's own size.

    Raises:
        FileNotFoundError: an unknown base.
        ValueError: an unknown table, or one without a row for the base.
    """
    base_file = get_base_file(base)
    content = _read_rows_file(Path(get_config_file(PAPER_ROWS)))
    _check_table(table, {x["table"] for x in content["rows"]})
    of_table = [x for x in content["rows"] if x["table"] == table]
    rows = [x for x in of_table if base in x.get("bases", [base])]
    if not rows:
        bases = ", ".join(sorted({name for x in of_table for name in x["bases"]}))
        raise ValueError(f"--table {table} has no row for --base {base}: its rows are for {bases}")
    cfg = load_config(base_file)
    return [_make_row(x, base_file, cfg) for x in rows]


def read_rows(file: Path, base: Optional[str] = None) -> dict[str, list[Row]]:
    """The rows of a file by table.

    Args:
        base: of the rows that have no config.

    Raises:
        OSError: the file cannot be read.
        ValueError: its content is wrong, or `base` is missing or not used; says what is wrong.
    """
    entries = _read_rows_file(file)["rows"]
    if base is not None and all("config" in x for x in entries):
        raise ValueError(f"--base {base}: every row of {file} has its own config; leave out --base")
    tables: dict[str, list[Row]] = {}
    for entry in entries:
        if base not in entry.get("bases", [base]):
            continue
        rows = tables.setdefault(entry["table"], [])
        if "config" not in entry:
            base_file = get_base_file(_require_base(base))
            rows.append(_make_row(entry, base_file, load_config(base_file)))
            continue
        # Not Path.glob, which refuses the full path of a config.
        configs = sorted(file.parent / x for x in glob.glob(entry["config"], root_dir=file.parent))
        if not configs:
            raise ValueError(f"{file}: no file in {file.parent} matches {entry['config']!r}")
        for config in configs:
            rows.append(_make_row({"row": config.stem, **entry}, config, load_config(config)))
    return tables


def read_starts(file: Path) -> list[Start]:
    """The start weights of a rows file.

    Raises:
        OSError: the file cannot be read.
        ValueError: its content is wrong; says what is.
    """
    starts = []
    for entry in _read_rows_file(file).get("start", []):
        _check_keys(entry, _START_KEYS, ("file", "keep", "train"), file)
        config = file.parent / entry["train"]
        row = Row("start", config.stem, config, entry.get("set", {}))
        starts.append(Start(Path(entry["file"]), entry["keep"], row))
    return starts


def _read_rows_file(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not json: {error}") from None
    if not isinstance(content, dict) or not content.get("rows"):
        raise ValueError(f'{file} must be an object with a list of "rows"')
    for entry in content["rows"]:
        _check_keys(entry, _ROW_KEYS, ("table",), file)
        if "row" not in entry and "config" not in entry:
            raise ValueError(
                f"{file}: a row needs either 'row' (its name) or 'config'; got {entry}"
            )
    return content


def _check_keys(entry: Any, known: set[str], required: Sequence[str], file: Path) -> None:
    if not isinstance(entry, dict):
        raise ValueError(f"{file}: an entry must be an object with keys, got {entry!r}")
    # A mistyped key would be ignored, and the row would train something other than it says.
    for key in entry:
        if key not in known:
            raise ValueError(f"{file}: {describe_unknown('key', key, known)}")
    for key in required:
        if key not in entry:
            raise ValueError(f"{file}: {key!r} is missing in {entry}")


def _make_row(entry: dict[str, Any], config: Path, cfg: CfgNode) -> Row:
    overrides = {
        **_get_anchors(entry, cfg),
        **_get_depth(entry, cfg),
        **_get_image_sizes(entry, cfg),
        **entry.get("set", {}),
    }
    return Row(entry["table"], entry["row"], config, overrides, entry.get("paper", {}))


def _get_anchors(entry: dict[str, Any], cfg: CfgNode) -> dict[str, Any]:
    """Anchors with a row's numbers of scales and aspect ratios, from the base's smallest sizes."""
    if "anchors" not in entry:
        return {}
    if entry["anchors"] not in _ANCHORS:
        known = ", ".join(map(str, _ANCHORS))
        raise ValueError(
            f"row {entry['row']!r}: anchors must be one of {known}; got {entry['anchors']}"
        )
    num_scales, num_aspects = entry["anchors"]
    # Scales divide the octave between two levels evenly, as in section 4 of the paper.
    factors = [2 ** (i / num_scales) for i in range(num_scales)]
    smallest = [sizes[0] for sizes in cfg.MODEL.ANCHOR_GENERATOR.SIZES]
    return {
        "MODEL.ANCHOR_GENERATOR.SIZES": [[x * factor for factor in factors] for x in smallest],
        "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [_ASPECT_RATIOS[num_aspects]],
    }


def _get_depth(entry: dict[str, Any], cfg: CfgNode) -> dict[str, Any]:
    if "depth" not in entry or cfg.MODEL.WEIGHTS != _RESNET_50:
        return {}
    weights = _RESNET_50.replace("R-50", f"R-{entry['depth']}")
    return {"MODEL.RESNETS.DEPTH": entry["depth"], "MODEL.WEIGHTS": weights}


def _get_image_sizes(entry: dict[str, Any], cfg: CfgNode) -> dict[str, Any]:
    """The base's image sizes times the ratio of the row's "scale" to the paper's 600 pixels."""
    if "scale" not in entry:
        return {}

    def scale(size: int) -> int:
        return round(size * entry["scale"] / _PAPER_SIZE)

    overrides: dict[str, Any] = {}
    for key in _SIZE_KEYS:
        sizes = cfg.INPUT[key]
        # Training draws from several sizes.
        if isinstance(sizes, tuple):
            overrides[f"INPUT.{key}"] = [scale(x) for x in sizes]
        else:
            overrides[f"INPUT.{key}"] = scale(sizes)
    return overrides


def make_grid(grid: Sequence[str], base_file: Path) -> list[Row]:
    """All combinations of `KEY=v1,v2` words.

    Raises:
        ValueError: a word of another form.
    """
    base_values = flatten_config(load_config(base_file))
    axes = []
    for word in grid:
        key, equals, values = word.partition("=")
        if not (key and equals and values):
            raise ValueError(f"--grid takes KEY=value,value..., got {word!r}")
        parsed = _parse_values(values)
        if isinstance(base_values.get(key), float):
            # "2" is an int, which the config refuses for a float.
            parsed = [float(x) if isinstance(x, int) else x for x in parsed]
        axes.append([(key, x) for x in parsed])
    rows = []
    for combination in itertools.product(*axes):
        # Whole keys would make names and folders too long to read.
        name = ", ".join(f"{key.split('.')[-1]} {value}" for key, value in combination)
        rows.append(Row("grid", name, base_file, dict(combination)))
    return rows


def _parse_values(values: str) -> list[Any]:
    """Values with commas between them: Python literals, which may have brackets, or else texts."""
    try:
        return list(ast.literal_eval(f"[{values}]"))
    except (ValueError, SyntaxError):
        return [parse_value(x) for x in values.split(",")]


def load_rows(rows: Sequence[Row], options: Sequence[str]) -> dict[Row, CfgNode]:
    """The config of each row.

    Args:
        options: KEY VALUE pairs for all rows; a row's own keys come after them.

    Raises:
        ValueError: two rows whose files would have the same name, or as for `load_config`.
    """
    names: dict[str, Row] = {}
    for row in rows:
        other = names.setdefault(row.slug, row)
        # One would get the results of the other.
        if other is not row:
            raise ValueError(
                f"table {row.table}: rows {other.name!r} and {row.name!r} would both be written to "
                f"{row.slug}.yaml; give them different names"
            )
    files = {row.config for row in rows}
    # Many rows share a config; each is read once.
    bases = {file: load_config(file, options) for file in files}
    return {row: merge_row(bases[row.config], row) for row in rows}


def merge_row(cfg: CfgNode, row: Row) -> CfgNode:
    """A copy of a config with the row's keys."""
    cfg = cfg.clone()
    # As words of a command line: only these have errors that name the nearest key.
    merge_options(cfg, [str(x) for pair in row.overrides.items() for x in pair])
    return cfg


def write_row(row: Row, options: Sequence[str], file: Path) -> None:
    """Write a row as a config based on `row.config`.

    Args:
        options: KEY VALUE pairs of all rows.
    """
    values = {key: parse_value(value) for key, value in zip(options[::2], options[1::2])}
    # A row's own keys win over those for all rows, as in `load_rows`.
    values.update(row.overrides)
    write_config(file, row.config, values, [f"Table {row.table}, row {row.name}"])
