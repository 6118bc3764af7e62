"""The trainer of `focal-det train`, built from the parts of this package."""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, HookBase
from detectron2.engine.hooks import EvalHook
from detectron2.evaluation import DatasetEvaluator

from focal_det.checkpoint.checkpointer import HealthyCheckpointer
from focal_det.checkpoint.weights_file import WeightsError
from focal_det.data.evaluation import build_evaluator
from focal_det.host import LOGGER_NAME
from focal_det.messages import shorten

from .data_order import build_train_loader, skip_trained_data
from .full_disk import report_full_disk_once
from .step_guard import DivergedError, StepGuard


class Trainer(DefaultTrainer):
    """Detectron2's DefaultTrainer, and

    - a StepGuard, so that nothing non-finite reaches the weights,
    - a HealthyCheckpointer, with the optimizer's state on Detectron2 0.5 and 0.6 too,
    - box evaluators chosen by a data set's `evaluator_type`, never with a cache of old annotations,
    - errors about an image that name its file,
    - resumed runs that continue with the data; Detectron2 starts again at the first batch.

    On a CPU and without workers, a resumed run is bit for bit the run that was not interrupted. See
    `skip_trained_data` for the rest. `cfg.SEED` must be the one the run was started with.
    """

    # Detectron2 sets these attributes, without annotations.
    checkpointer: HealthyCheckpointer
    _hooks: list[HookBase]

    def __init__(self, cfg: CfgNode) -> None:
        # Detectron2 may scale batch size and learning rate to the number of processes. A checkpoint
        # keeps the config as given, because a resume compares it with the one it is given.
        self._given_config = cfg.dump()
        super().__init__(cfg)

    def build_hooks(self) -> list[HookBase]:
        checkpointables = dict(self.checkpointer.checkpointables)
        # Before main, Detectron2's checkpoints lack the optimizer, and with it the momentum.
        if "state_dict" not in vars(DefaultTrainer):
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
        except FloatingPointError:
            # Detectron2 checks the losses of all processes itself, and keeps nothing of the step.
            self._guard.stop()

    def after_train(self) -> None:
        # Detectron2 evaluates after an exception in the last iteration as if the run had ended;
        # `iter` reaches `max_iter` only if it has.
        if self.iter < self.max_iter:
            self._hooks = [x for x in self._hooks if not isinstance(x, EvalHook)]
        super().after_train()

    def resume_or_load(self, resume: bool = True, allow_changes: bool = False) -> None:
        """Load the last checkpoint or MODEL.WEIGHTS, and move to the data that comes next.

        Args:
            resume: load the last checkpoint of OUTPUT_DIR if it has one.
            allow_changes: let a resumed run use learning rate, momentum and weight decay of the
                config; otherwise those in the checkpoint apply.

        Raises:
            WeightsError: the weights cannot be read or do not fit, or the classes have changed.
        """
        settings = [_get_settings(x) for x in self.optimizer.param_groups]
        super().resume_or_load(resume=resume)
        if not resume or self.start_iter == 0:
            return
        if allow_changes:
            self._set_settings(settings)
        else:
            self._check_class_names()
        if self.start_iter >= self.max_iter:
            logging.getLogger(LOGGER_NAME).info(
                f"all {self.start_iter} iterations of this run are done, and nothing is left to "
                "train; its model is evaluated again. To train longer, raise SOLVER.MAX_ITER"
            )
        elif self.cfg.SEED >= 0:
            skip_trained_data(self)

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
        # The scheduler multiplies its own copy of the learning rates.
        self.scheduler.base_lrs = [x["initial_lr"] for x in self.optimizer.param_groups]
        for group, lr in zip(self.optimizer.param_groups, self.scheduler.get_lr()):
            group["lr"] = lr

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> Iterable[list[dict[str, Any]]]:
        return build_train_loader(cfg)

    @classmethod
    def build_evaluator(
        cls, cfg: CfgNode, dataset_name: str, output_folder: Optional[str] = None
    ) -> DatasetEvaluator:
        return build_evaluator(dataset_name, output_folder or f"{cfg.OUTPUT_DIR}/inference")


def _get_class_names(cfg: CfgNode) -> dict[str, list[str]]:
    """ "class_names" of the first training set that has any."""
    for name in cfg.DATASETS.TRAIN:
        names = MetadataCatalog.get(name).get("thing_classes")
        if names:
            return {"class_names": [str(x) for x in names]}
    return {}


def _get_settings(group: dict[str, Any]) -> dict[str, Any]:
    """Learning rate, momentum and the like of a parameter group, without the parameters."""
    return {k: v for k, v in group.items() if k != "params"}
