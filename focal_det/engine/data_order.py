"""The order in which a run reads its data: a resumed run continues where it stopped."""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.data.build import _train_loader_from_config
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm
from torch.utils.data import Sampler

from focal_det.host import LOGGER_NAME, set_data_loader


class LaterSampler(Sampler):
    """An endless sampler without its first `num_skipped` indices."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler = sampler
        self.num_skipped = 0

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(iter(self.sampler), self.num_skipped, None)


class NamingMapper:
    """A dataset mapper whose errors name the image."""

    def __init__(self, mapper: Callable[[dict[str, Any]], Any]) -> None:
        self.mapper = mapper

    def __call__(self, record: dict[str, Any]) -> Any:
        try:
            return self.mapper(record)
        # Decoders, annotations and the user's own augmentations raise errors of any type.
        except Exception as error:
            raise ValueError(
                f"Image {record.get('file_name')}: {type(error).__name__}: {error}. Run "
                "`focal-det check` to find all images that cannot be read"
            ) from error


def build_train_loader(cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
    """Detectron2's training loader with a NamingMapper, and a LaterSampler as `later_sampler`."""
    args = _train_loader_from_config(cfg)
    args["mapper"] = NamingMapper(args["mapper"])
    args["sampler"] = LaterSampler(args["sampler"])
    loader = build_detection_train_loader(**args)
    # The loader hides its sampler deep inside batch samplers that differ between versions.
    loader.later_sampler = args["sampler"]
    return loader


def skip_trained_data(trainer: DefaultTrainer) -> None:
    """Move the data of a resumed run past the iterations that are already trained.

    Without workers, the trained batches are drawn again and discarded, which also restores the
    random generators. With workers, the sampler skips the indices already used; images waiting to
    be grouped by aspect ratio are lost.

    Args:
        trainer: with a loader of `build_train_loader` and the `start_iter` of the checkpoint.
    """
    log = logging.getLogger(LOGGER_NAME)
    cfg = trainer.cfg
    if cfg.DATALOADER.NUM_WORKERS == 0:
        log.info(f"drawing the batches of the first {trainer.start_iter} iterations again")
        for _ in range(trainer.start_iter):
            next(trainer._trainer._data_loader_iter)
        return

    log.info(f"continuing with the data after {trainer.start_iter} iterations")
    loader = trainer.data_loader
    # Each process draws its share of every batch from a sampler of its own.
    num_drawn = trainer.start_iter * cfg.SOLVER.IMS_PER_BATCH
    loader.later_sampler.num_skipped = num_drawn // comm.get_world_size()
    # The workers of the old iterator have the old number of skipped indices.
    set_data_loader(trainer._trainer, loader)
