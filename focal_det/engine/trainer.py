"""The trainer of `focal-det train`: Detectron2's DefaultTrainer, with what its hooks and loaders leave open."""

import itertools
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Optional

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_train_loader
from detectron2.data.build import _train_loader_from_config
from detectron2.engine import DefaultTrainer
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import (
    DatasetEvaluator,
)
from detectron2.utils import comm
from torch.utils.data import Sampler

from focal_det.checkpoint.checkpointer import HealthyCheckpointer
from focal_det.checkpoint.weights_file import WeightsError
from focal_det.data.evaluation import build_evaluator
from focal_det.files import report_full_disk_once
from focal_det.host import LOGGER_NAME, set_data_loader
from focal_det.messages import shorten

from .step_guard import DivergedError, StepGuard


class LaterSampler(Sampler):
    """An endless sampler without its first `num_skipped` indices."""

    def __init__(self, sampler: Sampler) -> None:
        self.sampler, self.num_skipped = sampler, 0

    def __iter__(self) -> Iterator[int]:
        return itertools.islice(iter(self.sampler), self.num_skipped, None)


class NamingMapper:
    """A mapper whose errors name the image."""

    def __init__(self, mapper: Callable[[dict[str, Any]], Any]) -> None:
        self.mapper = mapper

    def __call__(self, record: dict[str, Any]) -> Any:
        try:
            return self.mapper(record)
        except (
            Exception
        ) as error:  # of a file, its annotations or code of the user's: it may be anything
            what = f"{type(error).__name__}: {error}"
            raise ValueError(
                f"Image {record.get('file_name')}: {what}. `focal-det check` looks at all images before a training."
            ) from error


class Trainer(DefaultTrainer):
    """Detectron2's DefaultTrainer, and

    - errors of images that name the file,
    - box evaluators chosen by a data set's `evaluator_type`, never on a cache of annotations that have changed,
    - a StepGuard: nothing that is not finite reaches the weights,
    - a HealthyCheckpointer, with the optimizer's state on Detectron2 0.5 and 0.6 too,
    - a resumed run that goes on through the data. Detectron2 starts again at the first batch. On a CPU, a run without data workers
      is bit for bit the run that was not interrupted: the batches that have been trained on are drawn again, for the random
      generators, and left. With workers, the sampler leaves out what it has given; images that waited to be grouped by their
      shape are lost. Needs `cfg.SEED` to be what it was.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # Detectron2 may scale batch and learning rate to the number of processes; a checkpoint
        # keeps the config as it was given, to be compared at a resume.
        self._given_config = cfg.dump()
        super().__init__(cfg)

    def build_hooks(self) -> list:
        checkpointables = dict(self.checkpointer.checkpointables)
        if "state_dict" not in vars(DefaultTrainer):  # before main, checkpoints lack the momentum
            checkpointables["optimizer"] = self.optimizer
        self.checkpointer = HealthyCheckpointer(self.model, self.cfg.OUTPUT_DIR, **checkpointables)
        self._guard = StepGuard(self.cfg)
        self.checkpointer.find_divergence = self._guard.find_divergence
        self.checkpointer.extra = {"config": self._given_config, **_get_class_names(self.cfg)}
        return [self._guard, *super().build_hooks()]

    def train(self) -> Any:
        with report_full_disk_once(Path(self.cfg.OUTPUT_DIR)):
            return super().train()

    def run_step(self) -> None:
        try:
            super().run_step()
        except DivergedError:
            raise
        except FloatingPointError:  # Detectron2's own, of the losses
            self._guard.stop()

    def after_train(self) -> None:
        # Detectron2 evaluates after an exception in the last iteration, as after the end of a run;
        # `iter` reaches `max_iter` in the second case only.
        if self.iter < self.max_iter:
            self._hooks = [x for x in self._hooks if not isinstance(x, EvalHook)]
        super().after_train()

    def resume_or_load(self, resume: bool = True, take_new_settings: bool = False) -> None:
        """Load the last checkpoint or MODEL.WEIGHTS, and move on to the data that comes next.

        Args:
            take_new_settings: have a resumed run use the learning rate, momentum and weight decay
                of the config; otherwise it has those in the checkpoint.
        """
        settings = [_get_settings(x) for x in self.optimizer.param_groups]
        super().resume_or_load(resume=resume)
        if not resume or self.start_iter == 0:
            return
        if not take_new_settings:
            self._check_class_names()
        if take_new_settings:
            self._set_settings(settings)
        if self.start_iter >= self.max_iter:
            logging.getLogger(LOGGER_NAME).info(
                f"all {self.start_iter} iterations of this run are done, and nothing is left to "
                "train; its model is evaluated again. To train longer, raise SOLVER.MAX_ITER"
            )
        elif self.cfg.SEED >= 0:
            self._skip_data()

    def _check_class_names(self) -> None:
        before = self.checkpointer.loaded_class_names
        now = self.checkpointer.extra.get("class_names", before)
        if before and before != now:
            raise WeightsError(
                f"checkpoint {self.checkpointer.get_checkpoint_file()}: it was trained with the "
                f"classes {shorten(before)}, in this order; the training set has {shorten(now)}"
            )

    def _set_settings(self, settings: list[dict[str, Any]]) -> None:
        for group, values in zip(self.optimizer.param_groups, settings):
            group.update(values)
        # The scheduler has its own copy of the learning rates that it multiplies.
        self.scheduler.base_lrs = [x["initial_lr"] for x in self.optimizer.param_groups]
        for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_lr()):
            group["lr"] = lr

    def _skip_data(self) -> None:
        """Leave out the data that the run has been trained on before it was resumed."""
        log = logging.getLogger(LOGGER_NAME).info
        if self.cfg.DATALOADER.NUM_WORKERS == 0:
            log(f"drawing the batches of the first {self.start_iter} iterations again")
            for _ in range(self.start_iter):
                next(self._trainer._data_loader_iter)
            return
        log(f"going on through the data after {self.start_iter} iterations")
        loader = self.data_loader
        loader.later_sampler.num_skipped = (
            self.start_iter * self.cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size()
        )
        set_data_loader(self._trainer, loader)

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        args = _train_loader_from_config(cfg)
        args["sampler"], args["mapper"] = (
            LaterSampler(args["sampler"]),
            NamingMapper(args["mapper"]),
        )
        loader = build_detection_train_loader(**args)
        loader.later_sampler = args["sampler"]
        return loader

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: Optional[str] = None
    ) -> DatasetEvaluator:
        return build_evaluator(dataset_name, output_folder or f"{cfg.OUTPUT_DIR}/inference")


def _get_class_names(cfg: CfgNode) -> dict[str, list[str]]:
    """ "class_names" of the first training set that has any."""
    metadata = [MetadataCatalog.get(name) for name in cfg.DATASETS.TRAIN]
    names = next((x.thing_classes for x in metadata if x.get("thing_classes")), None)
    return {} if names is None else {"class_names": [str(x) for x in names]}


def _get_settings(group: dict[str, Any]) -> dict[str, Any]:
    """Learning rate, momentum and the like of a parameter group, without the parameters."""
    return {k: v for k, v in group.items() if k != "params"}
