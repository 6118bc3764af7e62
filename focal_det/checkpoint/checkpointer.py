"""Checkpoints that are safe to resume from, and weights that must fit the model."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from focal_det.files import open_to_replace
from focal_det.host import LOGGER_NAME

from .last import find_last_checkpoint
from .weights_file import WeightsError, read_weights, refuse_nonfinite

MIN_MATCHED = 0.1  # smallest share of the model's parameter tensors in a usable weights file
_MAX_NAMES = 3


class HealthyCheckpointer(DetectionCheckpointer):
    """Detectron2's DetectionCheckpointer, safe to resume from and strict about what it loads:

    - a checkpoint of a diverged model is saved as `diverged_<name>.pth` and not tagged as the last
      one, so that a resumed run starts from the checkpoint before it,
    - a checkpoint gets its final name once it has been written completely,
    - reading a file never runs code, and a file without weights is refused with an error that
      names it,
    - non-finite weights, and weights with less than a tenth of the model's parameter tensors, are
      refused; Detectron2 would train with them, or from scratch,
    - with `requires_all`, and when resuming, the weights must have every parameter of the model,
      and the statistics of its norms.

    Attributes:
        find_divergence: returns how the model has diverged, or None; called before each save.
        divergence: its last result.
        extra: saved in each checkpoint besides the model, such as "class_names".
        requires_all: whether weights that lack a part of the model are refused.
        loaded: what a resumed run's checkpoint holds besides the model, such as "class_names".
        num_tensors: number of parameter tensors of the model.
        num_matched: how many of them were in the weights loaded last.
    """

    find_divergence: Optional[Callable[[], Optional[str]]] = None
    divergence: Optional[str] = None
    requires_all = False
    num_matched = 0
    num_tensors = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.extra: dict[str, Any] = {}
        self.loaded: dict[str, Any] = {}
        self._num_bytes = 0  # of the checkpoint saved last

    def save(self, name: str, **kwargs: Any) -> None:
        if not self.save_dir or not self.save_to_disk:
            return
        self.divergence = self.find_divergence() if self.find_divergence else None
        if self.divergence:
            self._report_divergence(name)
            name = f"diverged_{name}"
        # In Detectron2's layout, so that it and focal_det can resume from each other's checkpoints.
        content = {"model": self.model.state_dict()}
        for key, value in self.checkpointables.items():
            content[key] = value.state_dict()
        file = Path(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {file}")
        with open_to_replace(file, num_bytes=self._num_bytes) as stream:
            torch.save({**content, **self.extra, **kwargs}, stream)
        self._num_bytes = file.stat().st_size
        if not self.divergence:
            self.tag_last_checkpoint(file.name)

    def _report_divergence(self, name: str) -> None:
        resume = "there is no healthy checkpoint yet"
        # This run has read or written the tagged checkpoint, so it need not be examined.
        if Path(self.save_dir, "last_checkpoint").is_file():
            resume = "--resume continues from the healthy checkpoint before it"
        logging.getLogger(LOGGER_NAME).error(
            f"The model has diverged: {self.divergence}. It is saved as diverged_{name}.pth and "
            f"not tagged as the last checkpoint; {resume}. Lower SOLVER.BASE_LR, warm up longer, "
            "or clip gradients harder (SOLVER.CLIP_GRADIENTS)."
        )

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        with open_to_replace(Path(self.save_dir, "last_checkpoint")) as stream:
            stream.write(last_filename_basename.encode())

    def has_checkpoint(self) -> bool:
        return bool(self.get_checkpoint_file())

    def get_checkpoint_file(self) -> str:
        last = find_last_checkpoint(Path(self.save_dir))
        return str(last.file) if last else ""

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Load the last checkpoint if `resume` is set and it exists, else the weights of `path`.

        Raises:
            WeightsError: the file holds no weights, or they do not fit; names the file.
        """
        last = find_last_checkpoint(Path(self.save_dir)) if resume else None
        if last is None:
            return self.load(path, checkpointables=[], source="MODEL.WEIGHTS ")
        for reason in last.skipped:
            logging.getLogger(LOGGER_NAME).warning(reason)
        # A layer that the checkpoint lacks would continue with random weights.
        self.requires_all = True
        self.loaded = self.load(str(last.file), source="checkpoint ")
        return self.loaded

    def load(self, path: str, *args: Any, source: str = "", **kwargs: Any) -> dict[str, Any]:
        try:
            return super().load(path, *args, **kwargs)
        except WeightsError as error:
            raise WeightsError(f"{source}{path}: {error}") from None
        # fvcore asserts that the file exists.
        except AssertionError as error:
            if "not found" not in str(error):
                raise
            raise WeightsError(f"{source}{path}: it does not exist") from None
        except OSError as error:  # a failed download, or a file that cannot be opened
            raise WeightsError(f"{source}{path}: it cannot be read ({error})") from None
        except ValueError as error:
            if "parameter group" not in str(error):
                raise
            raise WeightsError(
                f"{source}{path}: the state of its optimizer does not fit ({error}). The trained "
                "layers (MODEL.BACKBONE.FREEZE_AT) and the groups of parameters "
                "(SOLVER.WEIGHT_DECAY_NORM, WEIGHT_DECAY_BIAS, BIAS_LR_FACTOR) must not change"
            ) from None

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = read_weights(filename)
        # Detectron2 main accepts a query after a file name: file.pth?matching_heuristics=True.
        url = getattr(self, "_parsed_url_during_load", None)
        if url and url.query == "matching_heuristics=True":
            content["matching_heuristics"] = True
        return content

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        found = list(checkpoint["model"])
        refuse_nonfinite(checkpoint["model"])
        _refuse_other_types(checkpoint["model"], self.model.state_dict())
        incompatible = super()._load_model(checkpoint)
        names = [name for name, _ in self.model.named_parameters()]
        shapes = {x[0]: x[1:] for x in incompatible.incorrect_shapes}
        lacking = {*incompatible.missing_keys, *shapes}
        self.num_tensors = len(names)
        self.num_matched = sum(x not in lacking for x in names)
        # A backbone alone is enough to start from. Weights of another model share hardly any names,
        # and Detectron2 would only warn and train from scratch.
        if self.num_matched < MIN_MATCHED * self.num_tensors:
            raise WeightsError(
                f"the weights contain {self.num_matched} of the model's {self.num_tensors} "
                f"parameter tensors ({len(found)} tensors are in the file, such as "
                f"{', '.join(found[:3])}; the model wants {', '.join(names[:3])}): they belong to "
                "another model"
            )
        if self.requires_all:
            # The count of batches affects no result, and some exporters leave it out.
            missing = [
                x for x in incompatible.missing_keys if not x.endswith(".num_batches_tracked")
            ]
            if missing:
                raise WeightsError(_describe_lacking(missing, shapes))
        return incompatible


def load_all_weights(model: nn.Module, weights: str) -> dict[str, Any]:
    """Load a trained model for use: every parameter must be in the file.

    Args:
        weights: file or URL; MODEL.WEIGHTS of a config.

    Returns:
        The other entries of a checkpoint, such as "class_names".

    Raises:
        WeightsError: the file holds no weights, or lacks some of the model's; names the file.
    """
    checkpointer = HealthyCheckpointer(model)
    checkpointer.requires_all = True
    return checkpointer.resume_or_load(weights, resume=False)


def _refuse_other_types(weights: dict[str, Any], wanted: dict[str, Tensor]) -> None:
    """Refuse integers in place of floats, and floats in place of integers.

    torch converts them silently. One changed byte in the header of a safetensors file can declare
    its floats to be int32.

    Args:
        weights: tensors or arrays by name.
        wanted: state of the model.
    """
    for name, value in weights.items():
        want = wanted.get(name.removeprefix("module."))
        if want is None:
            continue
        dtype = torch.as_tensor(value).dtype
        if dtype.is_floating_point != want.dtype.is_floating_point:
            raise WeightsError(f"{name} is {dtype} in the file and {want.dtype} in the model")


def _describe_lacking(names: list[str], shapes: dict[str, tuple]) -> str:
    """Error text for parameters that a file lacks, with the config keys that decide them."""
    parts = []
    for name in names[:_MAX_NAMES]:
        if name in shapes:
            in_file, in_model = shapes[name]
            parts.append(
                f"{name} is {tuple(in_file)} in the file and {tuple(in_model)} in the model"
            )
        else:
            parts.append(f"{name} is not in the file")
    more = ""
    if len(names) > _MAX_NAMES:
        more = f" and {len(names) - _MAX_NAMES} more"
    return (
        f"it does not fit the model: {'; '.join(parts)}{more}. The architecture, the anchors "
        "(MODEL.ANCHOR_GENERATOR), the number of classes and the kind of loss must match those it "
        "was trained with"
    )
