"""The training set of a config: its images, its classes and the size of its images in training."""

from collections.abc import Callable, Mapping
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.build import filter_images_with_only_crowd_annotations

from focal_det.data.catalog import check_metadata, prepare_datasets
from focal_det.modeling.build import read_settings

# From the name of a data set to its dataset dicts.
GetRecords = Callable[[str], list[dict[str, Any]]]


def read_training_set(
    cfg: CfgNode, get_records: GetRecords = DatasetCatalog.get
) -> list[dict[str, Any]]:
    """Read DATASETS.TRAIN, without the images that the config's data loader leaves out.

    Returns:
        Detectron2's dataset dicts.

    Raises:
        ValueError: no training set; one that is not registered, or has no annotations; or one whose
            classes are not those of the model.
    """
    if not cfg.DATASETS.TRAIN:
        raise ValueError("DATASETS.TRAIN is empty; name the data sets to count")
    settings = read_settings(cfg)
    prepare_datasets(cfg, settings.num_classes, settings.num_classes_key)

    # Names first: reading may take minutes.
    for name in cfg.DATASETS.TRAIN:
        if name not in DatasetCatalog.list():
            raise ValueError(
                f"DATASETS.TRAIN: data set {name} is not registered; does FOCAL_DET_DATASETS name "
                "its file?"
            )
    records = []
    for name in cfg.DATASETS.TRAIN:
        dataset_dicts = get_records(name)
        if not any(x.get("annotations") for x in dataset_dicts):
            raise ValueError(
                f"Data set {name} of DATASETS.TRAIN has no annotations to count; is it a test set?"
            )
        records += dataset_dicts

    # What training does not see must not count as background.
    if cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS:
        records = filter_images_with_only_crowd_annotations(records)
    if not any(map(get_objects, records)):
        raise ValueError(f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)} has nothing but crowds")
    return records


def get_objects(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Annotations of a dataset dict that are trained on: all but crowds."""
    return [x for x in record["annotations"] if x.get("iscrowd", 0) == 0]


def get_class_names(cfg: CfgNode) -> list[str]:
    """Class names of the training sets, which must be loaded; class ids if they have no names.

    Raises:
        ValueError: the training sets have different classes, or not as many as the model.
    """
    settings = read_settings(cfg)
    first = cfg.DATASETS.TRAIN[0]
    classes = MetadataCatalog.get(first).get("thing_classes")
    if not classes:
        classes = [str(i) for i in range(settings.num_classes)]
    for name in cfg.DATASETS.TRAIN:
        others = MetadataCatalog.get(name).get("thing_classes") or classes
        # Ids mean the same in all sets only if their classes are in the same order.
        if list(others) != list(classes):
            raise ValueError(
                f"DATASETS.TRAIN: the classes of {name} {others[:10]} are not those of {first} "
                f"{classes[:10]}"
            )
    check_metadata(cfg.DATASETS.TRAIN, settings.num_classes, settings.num_classes_key)
    return list(classes)


def get_middle_size(cfg: CfgNode) -> int:
    """Middle of the shorter sides that training draws from, in pixels; 0 if it does not resize."""
    sizes = sorted(cfg.INPUT.MIN_SIZE_TRAIN)
    if cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range":
        return (sizes[0] + sizes[-1]) // 2
    return sizes[len(sizes) // 2]
