"""Checkpoints that a training can go on from: sick ones are never the last, and weights that do not fit are refused."""

import logging
from collections.abc import Callable
from typing import Any, Optional

from focal_det.host import LOGGER_NAME

from detectron2.checkpoint import DetectionCheckpointer

MIN_MATCHED = 0.1  # of the model's parameters that a checkpoint must have


class HealthyCheckpointer(DetectionCheckpointer):
    """Detectron2's DetectionCheckpointer, except that

    - a checkpoint is only tagged as the last one if `find_sickness` has nothing to say; else it is saved as `sick_<name>.pth`,
      and a resumed run starts from the one before,
    - weights that have less than a tenth of the model's parameters are refused; Detectron2 would train from scratch.

    Attributes:
        find_sickness: returns what is wrong with the model as it is, or None; called before each save.
        sickness: what it said last.
        num_matched, num_tensors: parameters that the weights loaded last have, and all of the model.
    """

    find_sickness: Optional[Callable[[], Optional[str]]] = None
    sickness: Optional[str] = None
    num_matched = num_tensors = 0

    def save(self, name: str, **kwargs: Any) -> None:
        self.sickness = self.find_sickness() if self.find_sickness and self.save_to_disk else None
        if self.sickness:
            before = (
                "--resume goes on from the healthy one before it"
                if self.has_checkpoint()
                else "there is no healthy one yet"
            )
            logging.getLogger(LOGGER_NAME).error(
                f"The model is sick: {self.sickness}. It is saved as sick_{name}.pth and is not tagged as the last checkpoint; "
                f"{before}. Lower SOLVER.BASE_LR, warm up longer, or clip gradients more (SOLVER.CLIP_GRADIENTS)."
            )
        super().save(f"sick_{name}" if self.sickness else name, **kwargs)

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        if not last_filename_basename.startswith("sick_"):
            super().tag_last_checkpoint(last_filename_basename)

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        found = list(checkpoint["model"])
        incompatible = super()._load_model(checkpoint)
        names = [name for name, _ in self.model.named_parameters()]
        lacking = {*incompatible.missing_keys, *(x[0] for x in incompatible.incorrect_shapes)}
        self.num_tensors, self.num_matched = len(names), sum(x not in lacking for x in names)
        if self.num_matched < MIN_MATCHED * self.num_tensors:
            raise ValueError(
                f"the weights have {self.num_matched} of the model's {self.num_tensors} parameters ({len(found)} tensors are in "
                f"the file, such as {', '.join(found[:3])}; the model wants {', '.join(names[:3])}): they are of another model"
            )
        return incompatible
