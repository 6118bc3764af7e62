"""The training set of a config, its anchors, and configs written from what was measured: shared by `weights` and `check`."""

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import focal_det.host  # noqa: F401  (first: says how to get Detectron2)

import yaml
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import filter_images_with_only_crowd_annotations
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import (
    META_ARCH_REGISTRY,
    GeneralizedRCNN,
    RetinaNet,
    build_anchor_generator,
    build_backbone,
)
from detectron2.modeling.matcher import Matcher

from focal_det.analysis.anchor_fit import AnchorSetup
from focal_det.data.catalog import check_datasets, register_datasets

# From the name of a data set to its dataset dicts.
GetRecords = Callable[[str], list[dict[str, Any]]]


def get_num_classes_key(cfg: CfgNode) -> str:
    """The key of the number of classes of a config's architecture; empty if it is none that we know."""
    name = cfg.MODEL.META_ARCHITECTURE
    architecture = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else object
    keys = {
        RetinaNet: "MODEL.RETINANET.NUM_CLASSES",
        GeneralizedRCNN: "MODEL.ROI_HEADS.NUM_CLASSES",
    }
    return next(
        (
            key
            for known, key in keys.items()
            if isinstance(architecture, type) and issubclass(architecture, known)
        ),
        "",
    )


def get_num_classes(cfg: CfgNode) -> int:
    """The number of classes of a config's model; 0 if it is not known."""
    key = get_num_classes_key(cfg)
    return reduce(getitem, key.split("."), cfg) if key else 0


def read_training_set(
    cfg: CfgNode, get_records: GetRecords = DatasetCatalog.get
) -> list[dict[str, Any]]:
    """Dataset dicts of DATASETS.TRAIN, without empty images if the config has the data loader leave them out."""
    register_datasets(cfg.MODEL.FOCAL_DET.DATASETS, source="MODEL.FOCAL_DET.DATASETS")
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty; name the data sets to count")
    for name in cfg.DATASETS.TRAIN:
        if name not in DatasetCatalog.list():
            raise ValueError(
                f"DATASETS.TRAIN: data set {name} is not registered; does FOCAL_DET_DATASETS name its file?"
            )
    check_datasets(cfg.DATASETS.TRAIN, cfg.MODEL.RETINANET.NUM_CLASSES)
    records = []
    for name in cfg.DATASETS.TRAIN:
        dataset_dicts = get_records(name)
        if not any(x.get("annotations") for x in dataset_dicts):
            raise ValueError(
                f"Data set {name} of DATASETS.TRAIN has no annotations to count; is it a test set?"
            )
        records += dataset_dicts
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = filter_images_with_only_crowd_annotations(records)
    if not records:
        raise ValueError(f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)} has nothing but crowds")
    return records


def get_class_names(cfg: CfgNode) -> list[str]:
    """The classes of the training sets, which must be the same and as many as the model has; ids where there are no names."""
    num_classes, first = cfg.MODEL.RETINANET.NUM_CLASSES, cfg.DATASETS.TRAIN[0]
    classes = MetadataCatalog.get(first).get("thing_classes") or [
        str(i) for i in range(num_classes)
    ]
    for name in cfg.DATASETS.TRAIN:
        others = MetadataCatalog.get(name).get("thing_classes") or classes
        if list(others) != list(classes):
            raise ValueError(
                f"DATASETS.TRAIN: the classes of {name} {others[:10]} are not those of {first} {classes[:10]}"
            )
    if len(classes) != num_classes:
        raise ValueError(
            f"Data set {first} has {len(classes)} classes, but MODEL.RETINANET.NUM_CLASSES is {num_classes}"
        )
    return list(classes)


def get_middle_size(cfg: CfgNode) -> int:
    """The middle of the sizes that training draws from, in pixels; 0 if it does not resize."""
    sizes = sorted(cfg.INPUT.MIN_SIZE_TRAIN)
    return (
        (sizes[0] + sizes[-1]) // 2
        if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range"
        else sizes[len(sizes) // 2]
    )


def build_anchor_setup(cfg: CfgNode) -> AnchorSetup:
    """Anchors and thresholds as FocalRetinaNet has them, images of the middle size."""
    retinanet, backbone, size = cfg.MODEL.RETINANET, build_backbone(cfg), get_middle_size(cfg)
    shapes = [backbone.output_shape()[name] for name in retinanet.IN_FEATURES]
    return AnchorSetup(
        generator=build_anchor_generator(cfg, shapes),
        strides=[x.stride for x in shapes],
        matcher=Matcher(
            retinanet.IOU_THRESHOLDS, retinanet.IOU_LABELS, cfg.MODEL.FOCAL_DET.LOW_QUALITY_MATCHES
        ),
        resize=ResizeShortestEdge((size, size), cfg.INPUT.MAX_SIZE_TRAIN, "choice"),
        size_divisibility=backbone.size_divisibility,
        num_classes=retinanet.NUM_CLASSES,
    )


def write_config(
    file: Path,
    config_file: Path,
    cfg: CfgNode,
    opts: Sequence[str],
    values: Mapping[str, Any],
    header: Sequence[str],
) -> None:
    """A config on top of `config_file`, with the changes from the command line and `values`.

    Args:
        opts: KEY VALUE pairs that are merged in `cfg`, from which their values are taken.
        values: by full key.
        header: lines of the comment above.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    base = os.path.relpath(config_file.parent.resolve() / config_file.name, file.parent.resolve())
    content: dict[str, Any] = {"_BASE_": Path(base).as_posix()}
    for key, value in {
        **{key: reduce(getitem, key.split("."), cfg) for key in opts[0::2]},
        **values,
    }.items():
        *parents, leaf = key.split(".")
        reduce(lambda node, part: node.setdefault(part, {}), parents, content)[leaf] = value
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header)
    text = yaml.safe_dump(
        content, default_flow_style=None, sort_keys=False, width=130, allow_unicode=True
    )
    file.write_text(comment + text, encoding="utf-8")


def to_command_line(words: Sequence[str]) -> str:
    """A command for a POSIX shell, with the variable that names the data sets if it is set."""
    datasets_file = os.environ.get("FOCAL_DET_DATASETS")
    variable = f"FOCAL_DET_DATASETS={_quote(datasets_file)} " if datasets_file else ""
    return variable + " ".join(_quote(x) for x in words)


def _quote(word: str) -> str:
    """In double quotes where that is enough, so that "('cells_train',)" is legible."""
    return f'"{word}"' if "'" in word and not set(word) & set('"$`\\!') else shlex.quote(word)
