"""Data sets without code: blocks of yaml become entries of Detectron2's catalogs.

A block:

    - name: cells_train            # as in DATASETS.TRAIN
      format: coco                 # or voc
      json: annotations/train.json # coco: the annotations ...
      images: images               #       ... and the folder of the images
      classes: [RBC, WBC]          # optional for coco, whose json has them

    - name: cells_test
      format: voc
      root: VOCdevkit/Cells        # voc: folder with Annotations, ImageSets/Main, JPEGImages
      split: test                  #      ImageSets/Main/test.txt
      classes: [RBC, WBC]          #      in the order of the class ids
      evaluator: coco              # optional: coco or voc metrics; by default those of the format
      year: 2012                   # optional: 2007 for the 11-point VOC average precision

The blocks are a list in one of two places: under `DATASETS` in the yaml file that
FOCAL_DET_DATASETS names, where relative paths start at the folder of that file; or in the config
key MODEL.FOCAL_DET.DATASETS, where they start at the working folder, like all paths of a config.
`~` and `$VARIABLES` are expanded.
"""

import functools
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from focal_det.messages import describe_unknown, shorten

from .boxes import is_usable
from .digits import (
    ANNOTATIONS,
    DIGITS_CLASSES,
    DIGITS_SPLITS,
    ONE_CLASS,
    ONE_CLASS_ANNOTATIONS,
    build_digits,
    get_digits_root,
)
from .voc import load_voc, report_boxes_without_area

_REQUIRED_KEYS = {"coco": ("json", "images"), "voc": ("root", "split", "classes")}
_OPTIONAL_KEYS = {"coco": ("classes",), "voc": ("evaluator", "year")}
# Keys whose value must be an existing file or folder.
_FILE_KEYS = ("json",)
_FOLDER_KEYS = ("images", "root")
# Detectron2's `evaluator_type` for the evaluator of a block.
_EVALUATORS = {"coco": "coco", "voc": "pascal_voc"}
# Key of a block: key of Detectron2's metadata that gets its value.
_METADATA = {"root": "dirname", "split": "split", "json": "json_file", "images": "image_root"}


def register_datasets_file(path: str) -> None:
    """Register the blocks under `DATASETS` of a yaml file; the module describes their form.

    Raises:
        FileNotFoundError: no such file.
        ValueError: the file is not yaml, or has another form; else as for `register_datasets`.
    """
    file = Path(path).expanduser()
    if not file.is_file():
        raise FileNotFoundError(
            f"FOCAL_DET_DATASETS names {path}, which is not a file (working folder: {Path.cwd()})"
        )
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is not yaml: {error}") from None
    if not isinstance(content, dict) or list(content) != ["DATASETS"]:
        raise ValueError(f"{file} must have one top-level key, DATASETS, with a list of data sets")
    register_datasets(content["DATASETS"], source=str(file), base=file.parent)


def register_datasets(
    blocks: Sequence[Mapping[str, Any]], *, source: str, base: Path = Path()
) -> None:
    """Check blocks, and register the correct ones; the module describes their form.

    Args:
        blocks: one mapping per data set.
        source: file or key the blocks come from, for messages.
        base: folder that relative paths start at.

    Raises:
        ValueError: a key or value that is missing, unknown or of the wrong type, or a name that
            another data set has.
        FileNotFoundError: a path that does not exist. If several blocks are wrong, the first error
            is raised.
    """
    if not isinstance(blocks, (list, tuple)):
        raise ValueError(f"{source} must be a list of data sets, got {type(blocks).__name__}")

    # The correct blocks are registered all the same: `focal-det check` goes on with them.
    errors = []
    for index, block in enumerate(blocks):
        try:
            _register_block(block, index, source, base)
        except (OSError, ValueError) as error:
            errors.append(error)
    if errors:
        raise errors[0]


def describe_unregistered(name: str) -> str:
    """Error text for a data set that is not registered, with the most likely reason first."""
    advice = ""
    if not os.environ.get("FOCAL_DET_DATASETS"):
        advice = "FOCAL_DET_DATASETS is not set: set it to the file that declares the data set."
    return describe_unknown("data set", name, DatasetCatalog.list(), advice=advice)


def prepare_datasets(cfg: CfgNode, num_classes: int, key: str) -> tuple[str, ...]:
    """Register the config's data sets, and compare their numbers of classes with K.

    Only data sets that focal_det registered are compared; for the others, whose classes Detectron2
    knows after loading, see `check_metadata`.

    Args:
        cfg: Detectron2's config; its blocks are in MODEL.FOCAL_DET.DATASETS.
        num_classes: K of the model that will be built.
        key: full key of K, for messages.

    Returns:
        Names of the training and test sets.

    Raises:
        ValueError: a data set has more or fewer than K classes; else as for `register_datasets`.
        FileNotFoundError: as for `register_datasets`.
    """
    register_datasets(cfg.MODEL.FOCAL_DET.DATASETS, source="MODEL.FOCAL_DET.DATASETS")
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    for name in names:
        # Detectron2 reports an unknown name where it loads the data set.
        if name not in DatasetCatalog.list():
            continue
        spec = MetadataCatalog.get(name).get("focal_det_spec")
        if spec is not None:
            _check_num_classes(name, _read_classes(spec), num_classes, key)
    return names


def check_metadata(names: Iterable[str], num_classes: int, key: str) -> None:
    """Compare the numbers of classes of loaded data sets, whoever registered them, with K.

    Args:
        num_classes, key: as for `prepare_datasets`.

    Raises:
        ValueError: a data set has more or fewer than K classes.
    """
    for name in names:
        # `MetadataCatalog.get` would add an unknown name to the catalog.
        if name not in MetadataCatalog.list():
            continue
        classes = MetadataCatalog.get(name).get("thing_classes")
        if classes:
            _check_num_classes(name, classes, num_classes, key)


def _check_num_classes(name: str, classes: Sequence[str], num_classes: int, key: str) -> None:
    if len(classes) == num_classes:
        return
    raise ValueError(
        f"Data set {name} has {len(classes)} classes ({shorten(classes, 10)}), but {key} is "
        f"{num_classes}. Set it to {len(classes)}."
    )


def read_class_names(name: str) -> list[str]:
    """Classes of a data set in the order of the class ids; empty if they are not known.

    Detectron2's catalog has the classes of a COCO json only after the data set has been loaded;
    before that, those of a data set that focal_det registered are read from its annotations.
    """
    # `get` would add an unknown name, as `check_metadata` says.
    if name not in MetadataCatalog.list():
        return []
    metadata = MetadataCatalog.get(name)
    spec = metadata.get("focal_det_spec")
    if metadata.get("thing_classes"):
        return list(metadata.thing_classes)
    if spec:
        return list(_read_classes(spec))
    return []


def sample_evenly(records: Sequence[Any], num: int) -> list[Any]:
    """Choose `num` records at even distances; all if `num` is 0 or larger than their number."""
    if num == 0 or num >= len(records):
        return list(records)
    step = (len(records) - 1) / max(1, num - 1)
    return [records[round(i * step)] for i in range(num)]


def register_digits() -> None:
    """Register the generated sets `digits_*`; their images are drawn when first read."""
    for split in DIGITS_SPLITS:
        _add_digits(f"digits_{split}", split, DIGITS_CLASSES, ANNOTATIONS)
        _add_digits(f"digits_{split}_one_class", split, ONE_CLASS, ONE_CLASS_ANNOTATIONS)


def _add_digits(name: str, split: str, classes: Sequence[str], annotations: str) -> None:
    folder = get_digits_root() / split
    spec = {"name": name, "format": "digits", "classes": list(classes), "split": split}
    _add(
        spec,
        evaluator_type="coco",
        json_file=str(folder / annotations),
        image_root=str(folder / "images"),
    )


def _resolve(block: Mapping[str, Any], where: str, base: Path) -> dict[str, Any]:
    """Check one block; return it with absolute paths, and with defaults filled in."""
    _check_keys(block, where)
    spec = {"evaluator": block["format"], "year": 2012, **block}
    if spec["evaluator"] not in _EVALUATORS:
        message = describe_unknown("evaluator", str(spec["evaluator"]), _EVALUATORS)
        raise ValueError(f"{where}: {message}")
    if spec["year"] not in (2007, 2012):
        raise ValueError(f"{where}: year must be 2007 or 2012, got {spec['year']!r}")

    for key in (*_FILE_KEYS, *_FOLDER_KEYS):
        if key in spec:
            path = _expand_path(spec[key], f"{where}: {key}", base)
            _check_exists(path, f"{where}: {key} is {spec[key]!r}", want_file=key in _FILE_KEYS)
            spec[key] = str(path)
    if spec["format"] == "voc":
        split_file = Path(spec["root"], "ImageSets", "Main", f"{spec['split']}.txt")
        _check_exists(split_file, f"{where}: split is {spec['split']!r}", want_file=True)
    if "classes" in spec:
        spec["classes"] = _check_class_names(spec["classes"], where)
    return spec


def _check_keys(block: Mapping[str, Any], where: str) -> None:
    """Refuse a block of an unknown format, with an unknown key or without one it needs."""
    data_format = block.get("format")
    if data_format not in _REQUIRED_KEYS:
        raise ValueError(f"{where}: {describe_unknown('format', str(data_format), _REQUIRED_KEYS)}")
    required = ("name", "format", *_REQUIRED_KEYS[data_format])
    known = (*required, *_OPTIONAL_KEYS[data_format])
    for key in block:
        if key not in known:
            raise ValueError(f"{where}: {describe_unknown('key', str(key), known)}")
    for key in required:
        # A key without a value is None in yaml.
        if block.get(key) in (None, "", []):
            raise ValueError(
                f"{where} has no {key!r}; format {data_format} needs {', '.join(required)}"
            )


def _expand_path(value: Any, where: str, base: Path) -> Path:
    expanded = os.path.expandvars(str(value))
    # `expandvars` leaves a variable that is not set as it stands.
    unset = re.search(r"\$\{?(\w+)", expanded)
    if unset:
        raise ValueError(
            f"{where} is {value!r}, but the environment variable {unset.group(1)} is not set"
        )
    return (base / Path(expanded).expanduser()).absolute()


def _check_exists(path: Path, what: str, *, want_file: bool) -> None:
    if want_file and not path.is_file():
        raise FileNotFoundError(f"{what}, but there is no file {path}")
    if not want_file and not path.is_dir():
        raise FileNotFoundError(f"{what}, but there is no folder {path}")


def _check_class_names(classes: Any, where: str) -> list[str]:
    names = []
    if isinstance(classes, (list, tuple)):
        names = [str(x) for x in classes]
    if not names or len(set(names)) != len(names):
        raise ValueError(f"{where}: classes must be a list of different names, got {classes!r}")
    return names


def _register_block(block: Any, index: int, source: str, base: Path) -> None:
    if not isinstance(block, Mapping) or not isinstance(block.get("name"), str):
        raise ValueError(f"{source}: entry {index} must be a mapping with a 'name', got {block!r}")
    where = f"{source}: data set {block['name']!r}"
    _register(_resolve(block, where, base), where)


def _register(spec: dict[str, Any], where: str) -> None:
    """Add a checked block to the catalogs; a second model may register the same block again."""
    name = spec["name"]
    if name in DatasetCatalog.list():
        if MetadataCatalog.get(name).get("focal_det_spec") != spec:
            raise ValueError(
                f"{where}: the name is taken by another data set; choose a different one"
            )
        return
    metadata = {theirs: spec[ours] for ours, theirs in _METADATA.items() if ours in spec}
    _add(spec, evaluator_type=_EVALUATORS[spec["evaluator"]], year=spec["year"], **metadata)


def _add(spec: dict[str, Any], **metadata: Any) -> None:
    name = spec["name"]
    if name in DatasetCatalog.list():
        return
    # Read when Detectron2 first asks for it: most runs use few of the registered sets.
    DatasetCatalog.register(name, lambda: _load(spec))
    if "classes" in spec:
        metadata["thing_classes"] = spec["classes"]
    MetadataCatalog.get(name).set(focal_det_spec=spec, **metadata)


def _load(spec: dict[str, Any]) -> list[dict[str, Any]]:
    """Dataset dicts of one registered data set."""
    name = spec["name"]
    if spec["format"] == "voc":
        return load_voc(Path(spec["root"]), spec["split"], spec["classes"], name)
    if spec["format"] == "digits":
        # The images are drawn when they are first needed, and kept.
        build_digits(spec["split"])
    else:
        _read_classes(spec)
    metadata = MetadataCatalog.get(name)
    records = load_coco_json(metadata.json_file, metadata.image_root, name)
    without_area = []
    for record in records:
        annotations = record["annotations"]
        record["annotations"] = [x for x in annotations if is_usable(x["bbox"])]
        without_area += [
            f"{record['file_name']} {x['bbox']}" for x in annotations if not is_usable(x["bbox"])
        ]
    report_boxes_without_area(name, without_area)
    return records


def _read_classes(spec: dict[str, Any]) -> list[str]:
    """Classes of a data set's annotations, in the order of the class ids.

    Raises:
        ValueError: the annotations cannot be read, or have other classes than the block.
    """
    if spec["format"] == "digits":
        return spec["classes"]
    if spec["format"] == "voc":
        # VOC has no list of classes: only reading it all finds an object of another class.
        _load(spec)
        return spec["classes"]
    try:
        classes = list(_read_coco_classes(spec["json"], os.stat(spec["json"]).st_mtime_ns))
    # RecursionError: brackets nested deeper than Python's json can follow.
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"Data set {spec['name']}: {spec['json']} is not COCO json with categories ({error!r})"
        ) from error
    if spec.get("classes", classes) != classes:
        raise ValueError(
            f"Data set {spec['name']} declares classes {spec['classes']}, but {spec['json']} has "
            f"{classes} (in order of category id). Write the names in that order, or leave "
            "'classes' out."
        )
    return classes


@functools.lru_cache
def _read_coco_classes(file: str, mtime: int) -> tuple[str, ...]:
    """Names of the categories of a COCO json, in order of id.

    A large file takes long to read, so the result is kept until `mtime`, its time of change,
    differs.
    """
    categories = json.loads(Path(file).read_text(encoding="utf-8"))["categories"]
    return tuple(x["name"] for x in sorted(categories, key=lambda x: x["id"]))
