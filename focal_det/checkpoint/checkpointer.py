"""Checkpoints a run can resume from: diverged ones are never the last, and weights that do not fit are refused."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import nn

from focal_det.files import open_to_replace
from focal_det.host import LOGGER_NAME
from focal_det.messages import shorten

from .last import find_last_checkpoint
from .weights_file import WeightsError, read_weights

MIN_MATCHED = 0.1  # of the model's parameters that a checkpoint must have
_MAX_NAMES = 3


class HealthyCheckpointer(DetectionCheckpointer):
    """Detectron2's DetectionCheckpointer, except that

    - a checkpoint is only tagged as the last one if `find_divergence` returns None; else it is saved as
      `diverged_<name>.pth`, and a resumed run starts from the one before,
    - a checkpoint gets its name when all of it is on the disk,
    - no file can run code when it is read, and one that holds no weights is refused by name,
    - weights that are not finite, or have less than a tenth of the model's parameters, are refused; Detectron2 would train with
      them, or from scratch,
    - with `requires_all`, and at a resume, the weights must have every parameter of the model.

    Attributes:
        find_divergence: returns what is wrong with the model as it is, or None; called before each save.
        divergence: what it said last.
        extra: saved in each checkpoint beside the model, such as "class_names".
        requires_all: whether weights without some of the model's parameters are refused.
        loaded_class_names: of the checkpoint that a run was resumed from, if it has any.
        num_matched, num_tensors: parameters that the weights loaded last have, and all of the model.
    """

    find_divergence: Optional[Callable[[], Optional[str]]] = None
    divergence: Optional[str] = None
    requires_all = False
    num_matched = num_tensors = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.extra: dict[str, Any] = {}
        self.loaded_class_names: list[str] = []

    def save(self, name: str, **kwargs: Any) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        self.divergence = self.find_divergence() if self.find_divergence else None
        if self.divergence:
            self._report_divergence(name)
            name = f"diverged_{name}"
        content = {"model": self.model.state_dict()}
        for key, value in self.checkpointables.items():
            content[key] = value.state_dict()
        file = Path(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {file}")
        with open_to_replace(file) as stream:
            torch.save({**content, **self.extra, **kwargs}, stream)
        self.tag_last_checkpoint(file.name)

    def _report_divergence(self, name: str) -> None:
        before = "there is no healthy one yet"
        if self.has_checkpoint():
            before = "--resume goes on from the healthy one before it"
        logging.getLogger(LOGGER_NAME).error(
            f"The model has diverged: {self.divergence}. It is saved as diverged_{name}.pth and is not tagged as "
            "the last checkpoint; "
            f"{before}. Lower SOLVER.BASE_LR, warm up longer, or clip gradients more (SOLVER.CLIP_GRADIENTS)."
        )

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        if last_filename_basename.startswith("diverged_"):
            return
        with open_to_replace(Path(self.save_dir, "last_checkpoint")) as stream:
            stream.write(last_filename_basename.encode())

    def has_checkpoint(self) -> bool:
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        return str(find_last_checkpoint(Path(self.save_dir)) or "")

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the last checkpoint if there is one and `resume` is set, else the weights of `path`.

        Raises:
            WeightsError: what is loaded holds no weights, or they do not fit; names the file.
        """
        checkpoint = self.get_checkpoint_file() if resume else ""
        if not checkpoint:
            return self.load(path, checkpointables=[], source="MODEL.WEIGHTS ")
        self.requires_all = True
        content = self.load(checkpoint, source="checkpoint ")
        if "iteration" not in content:
            raise WeightsError(f"checkpoint {checkpoint}: it holds weights only, not a run")
        self.loaded_class_names = content.get("class_names", [])
        return content

    def load(self, path: str, *args: Any, source: str = "", **kwargs: Any) -> dict[str, Any]:
        try:
            return super().load(path, *args, **kwargs)
        except WeightsError as error:
            raise WeightsError(f"{source}{path}: {error}") from None
        except AssertionError as error:
            if "not found" not in str(error):
                raise
            raise WeightsError(f"{source}{path}: it does not exist") from None
        except OSError as error:  # of a URL
            raise WeightsError(f"{source}{path}: it cannot be read ({error})") from None
        except ValueError as error:
            if "parameter group" not in str(error):
                raise
            raise WeightsError(
                f"{source}{path}: the state of its optimizer does not fit ({error}). What is trained "
                "(MODEL.BACKBONE.FREEZE_AT) and the groups of parameters (SOLVER.WEIGHT_DECAY_NORM, "
                "WEIGHT_DECAY_BIAS, BIAS_LR_FACTOR) must be as they were"
            ) from None

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = read_weights(filename)
        if self.requires_all and "optimizer" in self.checkpointables and "optimizer" not in content:
            logging.getLogger(LOGGER_NAME).warning(
                f"{filename} does not hold the state of the optimizer (Detectron2's own script did "
                "not save it before main): its momentum starts at 0"
            )
        # Detectron2 main takes a query behind the name of a file: file.pth?matching_heuristics=True.
        url = getattr(self, "_parsed_url_during_load", None)
        if url and url.query == "matching_heuristics=True":
            content["matching_heuristics"] = True
        return content

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        found = list(checkpoint["model"])
        _refuse_not_finite(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        names = [name for name, _ in self.model.named_parameters()]
        shapes = {x[0]: x[1:] for x in incompatible.incorrect_shapes}
        lacking = {*incompatible.missing_keys, *shapes}
        self.num_tensors = len(names)
        self.num_matched = sum(x not in lacking for x in names)
        if self.num_matched < MIN_MATCHED * self.num_tensors:
            raise WeightsError(
                f"the weights have {self.num_matched} of the model's {self.num_tensors} parameters ({len(found)} tensors are in "
                f"the file, such as {', '.join(found[:3])}; the model wants {', '.join(names[:3])}): they are of another model"
            )
        if self.requires_all and self.num_matched < self.num_tensors:
            raise WeightsError(_describe_lacking([x for x in names if x in lacking], shapes))
        return incompatible


def load_all_weights(model: nn.Module, weights: str) -> dict[str, Any]:
    """Load a trained model to use it: every parameter must be in the file.

    Args:
        weights: file or URL; MODEL.WEIGHTS of a config.

    Returns:
        What a checkpoint holds besides, such as "class_names".

    Raises:
        WeightsError: the file holds no weights, or not those of all parameters; names it.
    """
    checkpointer = HealthyCheckpointer(model)
    checkpointer.requires_all = True
    return checkpointer.resume_or_load(weights, resume=False)


def _refuse_not_finite(model: dict[str, Any]) -> None:
    tensors = {k: torch.as_tensor(v) for k, v in model.items()}
    wrong = [k for k, v in tensors.items() if v.is_floating_point() and not v.isfinite().all()]
    if wrong:
        raise WeightsError(
            f"{len(wrong)} of its tensors have NaN or infinity: {shorten(wrong, _MAX_NAMES)}. "
            "Take a checkpoint from before the run diverged"
        )


def _describe_lacking(names: list[str], shapes: dict[str, tuple]) -> str:
    """What a file lacks of the model, with the keys that decide it."""
    parts = []
    for name in names[:_MAX_NAMES]:
        if name in shapes:
            in_file, in_model = shapes[name]
            parts.append(
                f"{name} is {tuple(in_file)} in the file and {tuple(in_model)} in the model"
            )
        else:
            parts.append(f"{name} is not in the file")
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return (
        f"it does not fit the model: {'; '.join(parts)}{more}. The architecture, the anchors "
        "(MODEL.ANCHOR_GENERATOR), the number of classes and the kind of loss must be those it was "
        "trained with"
    )
