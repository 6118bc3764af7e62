"""What the checks of a config know: its data sets and settings, resolved once."""

import contextlib
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

from focal_det.imbalance.measure import TrainingSetReport
from focal_det.modeling.build import read_settings


@dataclass(frozen=True)
class Use:
    """What a data set is for, which decides what it must have.

    Attributes:
        is_train: it is trained on, so there must be objects.
        is_test: it is evaluated on, so there must be unique image ids, `iscrowd` and `area`.
        filter_empty: training leaves out images without objects.
    """

    is_train: bool = True
    is_test: bool = True
    filter_empty: bool = True


ANY_USE = Use()


@dataclass
class DataSet:
    """A registered data set that is checked.

    Attributes:
        images: with "file_name" and, as far as known, "width" and "height" in pixels; left by the
            check of the annotations.
        classes: names in the order of their ids, empty if unknown; left by the same check.
        files: names of the image files, as `check_images` returns them; left by the check of the
            images.
    """

    name: str
    use: Use
    metadata: Metadata
    images: list[dict[str, Any]] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    files: dict[Any, str] = field(default_factory=dict)

    @property
    def spec(self) -> dict[str, Any]:
        """The block it was registered from (see `focal_det.data.catalog`); empty without one."""
        return self.metadata.get("focal_det_spec", {})


class Plan:
    """What is checked, and what earlier checks leave for later ones.

    Args:
        cfg: Detectron2's config; the data sets in MODEL.FOCAL_DET.DATASETS must be registered.
        num_decoded: images of each data set to decode, at even distances; 0 for all.
        only: name of the only data set to check; None for those of the config.
        suggest: whether to look for anchors that fit better.
        is_training: whether this machine is about to train.

    Attributes:
        settings: of the detector.
        datasets: the registered ones among those that are checked.
        output_dir: OUTPUT_DIR.
        report: measures of the training set; None until they are taken.
    """

    def __init__(
        self,
        cfg: CfgNode,
        *,
        num_decoded: int = 0,
        only: Optional[str] = None,
        suggest: bool = False,
        is_training: bool = False,
    ) -> None:
        self.cfg = cfg
        self.num_decoded = num_decoded
        self.only = only
        self.suggest = suggest
        self.is_training = is_training
        self.settings = read_settings(cfg)
        self.output_dir = Path(cfg.OUTPUT_DIR)
        self.report: Optional[TrainingSetReport] = None
        self.datasets = self._find_datasets()
        self._records: dict[str, list[dict[str, Any]]] = {}

    def get_names(self, key: str) -> list[str]:
        """Names in DATASETS.TRAIN or TEST; if `only` is given, at most that one."""
        return [x for x in self.cfg.DATASETS[key] if self.only in (None, x)]

    def get_records(self, name: str) -> list[dict[str, Any]]:
        """Detectron2's dicts of a data set; loaded only once, as a large JSON is slow to load."""
        if name not in self._records:
            with silence():
                self._records[name] = DatasetCatalog.get(name)
        return self._records[name]

    def _find_datasets(self) -> list[DataSet]:
        train = self.cfg.DATASETS.TRAIN
        test = self.cfg.DATASETS.TEST
        names = [self.only] if self.only else dict.fromkeys((*train, *test))
        datasets = []
        for name in names:
            # check_names reports it.
            if name not in DatasetCatalog.list():
                continue
            # A data set that the config does not use must be good for both uses.
            use = Use(
                is_train=name in train or name not in test,
                is_test=name in test or name not in train,
                filter_empty=self.cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
            )
            datasets.append(DataSet(name, use, MetadataCatalog.get(name)))
        return datasets


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Suppress what Detectron2 and pycocotools log and print."""
    # The caller may have disabled some levels itself.
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        # pycocotools prints, and stdout may be read as JSON.
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        logging.disable(before)
