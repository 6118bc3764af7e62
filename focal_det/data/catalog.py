"""Data sets without code: blocks of yaml become entries of Detectron2's DatasetCatalog and MetadataCatalog.

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
      evaluator: coco              # optional: coco or voc metrics; a data set has those of its format unless told otherwise
      year: 2012                   # optional: 2007 for the 11-point VOC average precision

Such blocks stand as a list under `DATASETS` in the yaml file named by FOCAL_DET_DATASETS, where relative paths are relative to that
file, or as the config key MODEL.FOCAL_DET.DATASETS, where they are, like all paths of a config, relative to the working folder.
`~` and `$VARIABLES` are expanded.
"""

import functools
import json
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json

from focal_det.messages import describe_unknown

from .digits import DIGITS_CLASSES, DIGITS_SPLITS, build_digits, get_digits_root
from .voc import load_voc, report_boxes_without_area

_REQUIRED_KEYS = {"coco": ("json", "images"), "voc": ("root", "split", "classes")}
_OPTIONAL_KEYS = {"coco": ("classes",), "voc": ("evaluator", "year")}
_EVALUATORS = {"coco": "coco", "voc": "pascal_voc"}


def register_datasets_file(path: str) -> None:
    """Register the blocks under `DATASETS` of a yaml file; see the module for their form."""
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
    """Check blocks (see the module) and register them, the others even if one is wrong.

    Args:
        blocks: one mapping per data set.
        source: file or key the blocks come from, for messages.
        base: folder that relative paths are relative to.

    Raises:
        ValueError: a key or value that is missing, unknown or of the wrong type, or a name that is taken by another data set.
        FileNotFoundError: a path that does not exist. If several blocks are wrong, the first error is raised.
    """
    errors = []
    if not isinstance(blocks, (list, tuple)):
        raise ValueError(f"{source} must be a list of data sets, got {type(blocks).__name__}")
    for index, block in enumerate(blocks):
        try:
            _register_block(block, index, source, base)
        except (OSError, ValueError) as error:
            errors.append(error)
    if errors:
        raise errors[0]


def describe_unregistered(name: str) -> str:
    """Error text for a data set that nobody registered; a forgotten file of data sets comes first."""
    file = os.environ.get("FOCAL_DET_DATASETS")
    advice = "" if file else "FOCAL_DET_DATASETS is not set: set it to the yaml file that has it."
    return describe_unknown("data set", name, DatasetCatalog.list(), advice=advice)


def prepare_datasets(cfg: CfgNode, num_classes: int, key: str) -> tuple[str, ...]:
    """Register the data sets of MODEL.FOCAL_DET.DATASETS, and compare the classes of all with K.

    Args:
        cfg: Detectron2's config.
        num_classes: K of the model that will be built.
        key: where K is set, for messages.

    Returns:
        Names of the training and test sets.

    Raises:
        ValueError, FileNotFoundError: see `register_datasets`; or the number of classes of a data
            set that focal_det registered is not K.
    """
    register_datasets(cfg.MODEL.FOCAL_DET.DATASETS, source="MODEL.FOCAL_DET.DATASETS")
    names = (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST)
    for name in names:
        if name not in DatasetCatalog.list():
            continue
        spec = MetadataCatalog.get(name).get("focal_det_spec")
        if spec is not None:
            _compare_number(name, _read_classes(spec), num_classes, key)
    return names


def check_metadata(names: Iterable[str], num_classes: int, key: str) -> None:
    """Compare the number of classes of data sets that have been loaded, whoever registered them.

    Args:
        num_classes, key: as for `prepare_datasets`.

    Raises:
        ValueError: a data set has more or fewer classes than the model.
    """
    for name in names:
        if name not in MetadataCatalog.list():
            continue
        classes = MetadataCatalog.get(name).get("thing_classes")
        if classes:
            _compare_number(name, classes, num_classes, key)


def _compare_number(name: str, classes: Sequence[str], num_classes: int, key: str) -> None:
    if len(classes) != num_classes:
        shown = ", ".join(map(str, classes[:10]))
        raise ValueError(
            f"Data set {name} has {len(classes)} classes ({shown}), but {key} is {num_classes}. "
            f"Set it to {len(classes)}."
        )


def read_class_names(name: str) -> list[str]:
    """The classes of a data set, in the order of the class ids; none if they are not known.

    Those of Detectron2's catalog, or of the annotations of a data set that focal_det registered,
    which the catalog has only after the data set has been loaded.
    """
    metadata = MetadataCatalog.get(name) if name in MetadataCatalog.list() else None
    if metadata is None:
        return []
    spec = metadata.get("focal_det_spec")
    return list(metadata.get("thing_classes") or (_read_classes(spec) if spec else []))


def sample_evenly(records: Sequence[Any], num: int) -> list[Any]:
    """`num` records at even distances; all if it is 0 or there are no more."""
    if num == 0 or num >= len(records):
        return list(records)
    return [records[round(i * (len(records) - 1) / max(1, num - 1))] for i in range(num)]


def register_digits() -> None:
    """Register digits_train, digits_val and digits_longtail_train; they are drawn when first read."""
    for split in DIGITS_SPLITS:
        folder = get_digits_root() / split
        spec = {
            "name": f"digits_{split}",
            "format": "digits",
            "classes": DIGITS_CLASSES,
            "split": split,
        }
        _add(
            spec,
            evaluator_type="coco",
            json_file=str(folder / "annotations.json"),
            image_root=str(folder / "images"),
        )


def _resolve(block: dict[str, Any], where: str, base: Path) -> dict[str, Any]:
    """Check the keys and values of one block; return it with absolute paths and defaults filled in."""
    data_format = block.get("format")
    if data_format not in _REQUIRED_KEYS:
        raise ValueError(f"{where}: {describe_unknown('format', str(data_format), _REQUIRED_KEYS)}")
    required = ("name", "format", *_REQUIRED_KEYS[data_format])
    known = (*required, *_OPTIONAL_KEYS[data_format])
    for key in block:
        if key not in known:
            raise ValueError(f"{where}: {describe_unknown('key', str(key), known)}")
    for key in required:
        if block.get(key) in (None, "", []):
            raise ValueError(
                f"{where} has no {key!r}; format {data_format} needs {', '.join(required)}"
            )
    block.setdefault("evaluator", data_format)
    if block["evaluator"] not in _EVALUATORS:
        raise ValueError(
            f"{where}: {describe_unknown('evaluator', str(block['evaluator']), _EVALUATORS)}"
        )
    if block.setdefault("year", 2012) not in (2007, 2012):
        raise ValueError(f"{where}: year must be 2007 or 2012, got {block['year']!r}")
    for key in {"json", "images", "root"} & set(block):
        block[key] = str(
            _resolve_path(block[key], f"{where}: {key}", base, want_file=key == "json")
        )
    if "classes" in block:
        block["classes"] = _check_class_names(block["classes"], where)
    if data_format == "voc":
        split_file = Path(block["root"], "ImageSets", "Main", f"{block['split']}.txt")
        _resolve_path(str(split_file), f"{where}: split", base, want_file=True)
    return block


def _resolve_path(value: Any, where: str, base: Path, *, want_file: bool) -> Path:
    expanded = os.path.expandvars(str(value))
    unset = re.search(r"\$\{?(\w+)", expanded)
    if unset:
        raise ValueError(
            f"{where} is {value!r}, but the environment variable {unset.group(1)} is not set"
        )
    path = (base / Path(expanded).expanduser()).absolute()
    if not (path.is_file() if want_file else path.is_dir()):
        raise FileNotFoundError(
            f"{where} is {value!r}, but there is no {'file' if want_file else 'folder'} {path}"
        )
    return path


def _check_class_names(classes: Any, where: str) -> list[str]:
    names = [str(x) for x in classes] if isinstance(classes, (list, tuple)) else []
    if not names or len(set(names)) != len(names):
        raise ValueError(f"{where}: classes must be a list of different names, got {classes!r}")
    return names


def _register_block(block: Any, index: int, source: str, base: Path) -> None:
    if not isinstance(block, Mapping) or not isinstance(block.get("name"), str):
        raise ValueError(f"{source}: entry {index} must be a mapping with a 'name', got {block!r}")
    where = f"{source}: data set {block['name']!r}"
    _register(_resolve(dict(block), where, base), where)


def _register(spec: dict[str, Any], where: str) -> None:
    name = spec["name"]
    if name in DatasetCatalog.list():
        if MetadataCatalog.get(name).get("focal_det_spec") != spec:
            raise ValueError(
                f"{where}: the name is taken by another data set; choose a different one"
            )
        return
    paths = {"dirname": "root", "split": "split", "json_file": "json", "image_root": "images"}
    metadata = {key: spec[source] for key, source in paths.items() if source in spec}
    _add(spec, evaluator_type=_EVALUATORS[spec["evaluator"]], year=spec["year"], **metadata)


def _add(spec: dict[str, Any], **metadata: Any) -> None:
    name = spec["name"]
    if name in DatasetCatalog.list():
        return
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
        build_digits(spec["split"])
    else:
        _read_classes(spec)
    metadata = MetadataCatalog.get(name)
    records = load_coco_json(metadata.json_file, metadata.image_root, name)
    without_area = []
    for record in records:
        kept = [
            x
            for x in record["annotations"]
            if min(x["bbox"][2:]) > 0 and all(map(math.isfinite, x["bbox"]))
        ]
        without_area += [
            f"{record['file_name']} {x['bbox']}" for x in record["annotations"] if x not in kept
        ]
        record["annotations"] = kept
    report_boxes_without_area(name, without_area)
    return records


def _read_classes(spec: dict[str, Any]) -> list[str]:
    """The classes of a data set's annotations, in the order of the class ids; ValueError if the block says otherwise."""
    if spec["format"] == "digits":
        return spec["classes"]
    if spec["format"] == "voc":
        _load(spec)
        return spec["classes"]
    try:
        classes = list(_read_coco_classes(spec["json"], os.stat(spec["json"]).st_mtime_ns))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"Data set {spec['name']}: {spec['json']} is not COCO json with categories ({error!r})"
        ) from error
    if spec.get("classes", classes) != classes:
        raise ValueError(
            f"Data set {spec['name']} is to have the classes {spec['classes']}, but {spec['json']} has {classes} (by category id). "
            "Write the names in that order, or leave 'classes' out."
        )
    return classes


@functools.lru_cache
def _read_coco_classes(file: str, mtime: int) -> tuple[str, ...]:
    """The names of the categories by their ids, of a file as it was at a time: a large one takes long to read."""
    categories = json.loads(Path(file).read_text(encoding="utf-8"))["categories"]
    return tuple(x["name"] for x in sorted(categories, key=lambda x: x["id"]))
