"""The training data of a process as one endless stream, which a resumed run continues.

What a run draws for an image, such as a flip, depends only on the seed and on the position of the
image in the stream. So the batches are the same with any number of data workers, and after any
number of resumes.
"""

import itertools
import random
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Optional

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetFromList
from detectron2.data.build import _train_loader_from_config
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, IterableDataset

from .data_workers import DataWorkers, start_worker
from .run_state import kept_generators

_MAX_TRIES = 100  # images tried in turn for one position while the mapper returns None

# A position in the stream, and the index of the image there.
Place = tuple[int, int]


class TrainingStream:
    """An endless iterator over batches of mapped images.

    With `by_orientation`, images of the same orientation are batched together, as in Detectron2;
    they wait until their batch is full.

    Args:
        dataset: Detectron2's dataset dicts.
        sampler: endless; yields the indices for this process.
        mapper: from a dataset dict to a model input, or to None to have another image instead.
        batch_size: images in a batch of this process.
        by_orientation: whether wide images and all others have separate batches.
        num_workers: processes that map images; 0 for this process.
        seed: of the run.

    Attributes:
        before_batch: called before a batch is returned, with the exception that prevents it or
            None. If it raises, the stream stays before that batch.
    """

    before_batch: Optional[Callable[[Optional[Exception]], None]] = None

    def __init__(
        self,
        dataset: Sequence[dict[str, Any]],
        sampler: Any,
        mapper: Callable[[dict[str, Any]], Any],
        *,
        batch_size: int,
        by_orientation: bool,
        num_workers: int,
        seed: int,
    ) -> None:
        self._sampler = sampler
        self._images = _MappedImages(dataset, mapper, seed)
        self._batch_size = batch_size
        self._by_orientation = by_orientation
        self._num_workers = num_workers
        self._workers: Optional[DataWorkers] = None
        self._buckets: dict[bool, list[tuple[Place, Any]]] = {}
        self._next_position = 0
        self._first: list[Place] = []
        self._state = self._describe()

    def __iter__(self) -> Iterator[list[Any]]:
        return self

    def __next__(self) -> list[Any]:
        batch: list[Any] = []
        error = None
        try:
            batch = self._read_batch()
        except Exception as e:  # a mapper may raise any type
            error = e
        if self.before_batch is not None:
            self.before_batch(error)
        if error is not None:
            raise error
        self._state = self._describe()
        return batch

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins, in plain numbers.

        Returns:
            "next", the position of the first image that has not been read; "waiting", the places of
            the images that wait for their batch; "sampler_seed", None if the sampler has none.
        """
        return self._state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Move to the point that `state_dict` described; only before the first batch.

        Raises:
            RuntimeError: the stream has begun.
        """
        if self._workers is not None:
            raise RuntimeError("a stream that has begun cannot move to another place")
        self._next_position = state["next"]
        self._first = [(position, index) for position, index in state["waiting"]]
        # Versions of Detectron2 derive different sampler seeds from the same cfg.SEED.
        if state.get("sampler_seed") is not None:
            self._sampler._seed = state["sampler_seed"]
        self._state = self._describe()

    def _describe(self) -> dict[str, Any]:
        waiting = self._first
        if self._workers is not None:
            waiting = sorted(place for bucket in self._buckets.values() for place, _ in bucket)
        return {
            "next": self._next_position,
            "waiting": [list(x) for x in waiting],
            "sampler_seed": getattr(self._sampler, "_seed", None),
        }

    def _read_batch(self) -> list[Any]:
        if self._workers is None:
            self._workers = DataWorkers(self._make_loader())
        while True:
            place, image = next(self._workers)
            # The images that were waiting come first, and do not move the position.
            self._next_position = max(self._next_position, place[0] + 1)
            is_wide = self._by_orientation and image["width"] > image["height"]
            bucket = self._buckets.setdefault(is_wide, [])
            bucket.append((place, image))
            if len(bucket) == self._batch_size:
                batch = [image for _, image in bucket]
                bucket.clear()
                return batch

    def _make_loader(self) -> DataLoader:
        indices = itertools.islice(iter(self._sampler), self._next_position, None)
        places = zip(itertools.count(self._next_position), indices)
        return DataLoader(
            self._images,
            sampler=itertools.chain(self._first, places),
            batch_size=None,
            num_workers=self._num_workers,
            collate_fn=_keep,
            worker_init_fn=start_worker,
            multiprocessing_context=_get_start_method(self._num_workers),
            # The loader draws its workers' seed from this, so the run's generator does not advance.
            generator=torch.Generator(),
        )


class _MappedImages(Dataset):
    """Maps a place in the stream to that place and its mapped image."""

    def __init__(
        self, dataset: Sequence[dict[str, Any]], mapper: Callable[[dict[str, Any]], Any], seed: int
    ) -> None:
        # A list is serialized, so that workers share its memory and may change the dicts.
        # Detectron2 also accepts a Dataset, which makes its dicts on demand.
        self._dataset = dataset
        if isinstance(dataset, list):
            self._dataset = DatasetFromList(dataset, copy=False)
        self._mapper = mapper
        self._seed = seed
        self._rank = comm.get_rank()
        self._num_processes = comm.get_world_size()

    def __getitem__(self, place: Place) -> tuple[Place, Any]:
        position, index = place
        # The position in the whole run, so that no two processes draw the same numbers.
        with _seeded(self._seed, position * self._num_processes + self._rank):
            return place, self._map(index)

    def _map(self, index: int) -> Any:
        for _ in range(_MAX_TRIES):
            image = self._mapper(self._dataset[index])
            if image is not None:
                return image
            index = random.randrange(len(self._dataset))
        raise ValueError(
            f"the mapper of the data set returned None for {_MAX_TRIES} images in turn"
        )


@contextmanager
def _seeded(seed: int, position: int) -> Iterator[None]:
    """Let a block draw random numbers that depend only on seed and position.

    Afterwards, the generators continue as if the block had drawn none.
    """
    words = np.random.SeedSequence([seed, position]).generate_state(4)
    with kept_generators():
        random.seed(int(words[0]))
        np.random.seed(words[1:3])
        # Not torch.manual_seed, which also seeds the GPUs.
        torch.default_generator.manual_seed(int(words[3]))
        yield


def _get_start_method(num_workers: int) -> Optional[str]:
    """How data workers start: on Linux by fork, Python's default there before 3.14."""
    return "fork" if num_workers > 0 and sys.platform == "linux" else None


def _keep(item: Any) -> Any:
    return item


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


def build_train_stream(cfg: CfgNode) -> TrainingStream:
    """The stream of a config, with Detectron2's data sets, sampler and mapper.

    Raises:
        ValueError: the batch size is not a multiple of the number of processes, or the data set is
            an iterable one.
    """
    args = _train_loader_from_config(cfg)
    if isinstance(args["dataset"], IterableDataset):
        raise ValueError(
            "DATASETS.TRAIN: an iterable data set has no positions to resume at; register a list"
        )
    num_processes = comm.get_world_size()
    total = args["total_batch_size"]
    if total % num_processes != 0:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH {total} must be a multiple of the {num_processes} processes"
        )
    seed = cfg.SEED
    if seed < 0:
        seed = comm.shared_random_seed()
    return TrainingStream(
        args["dataset"],
        args["sampler"],
        NamingMapper(args["mapper"]),
        batch_size=total // num_processes,
        by_orientation=args["aspect_ratio_grouping"],
        num_workers=args["num_workers"],
        seed=seed,
    )
