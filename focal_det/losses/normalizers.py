"""Loss normalizers: from the number of positives of each image to the divisor of the summed losses.

DistributedDataParallel averages gradients over processes. With all but EMAPosCount the average of
the divided losses is that of the whole batch in one process, if every process has the same number of
images. For GlobalEMAPosCount this holds after some dozens of steps, when `initial`, which is per
process, no longer counts.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .arguments import check_number
from .state import (
    OptionalBuffers,
    get_num_processes,
    is_training_step,
    sum_over_processes,
)


class Normalizer(nn.Module, ABC):
    """Base of all normalizers. A config selects one by the name of its class."""

    @abstractmethod
    def forward(self, num_pos: Tensor) -> Tensor:
        """The divisor of a batch.

        Args:
            num_pos: (N,) int64, positives of each image.

        Returns:
            () or (N,) float32, > 0.
        """


class EMAPosCount(OptionalBuffers, Normalizer):
    """Exponential moving average of the positives of this process's batch, as in Detectron2's RetinaNet.

    Detectron2 keeps the average in a Python attribute, which a resumed run starts anew; here it is a
    buffer. Each of several processes has an average of its own, and the checkpoint has that of the
    first: a resumed run starts from it in all of them. (GlobalEMAPosCount has the same average in all
    processes and resumes exactly.) A checkpoint without the buffer loads without complaint and leaves
    it as it is. A batch without positives counts as one. The average moves in training mode with
    gradients enabled only, not in the forwards of PreciseBN.

    Args:
        momentum: weight of the old average, in [0, 1).
        initial: average before the first step, finite and >= 1.

    Raises:
        ValueError: momentum or initial out of range.
    """

    def __init__(self, *, momentum: float = 0.9, initial: float = 100.0) -> None:
        super().__init__()
        check_number("momentum", momentum, "[0, 1)")
        check_number("initial", initial, "[1, inf)")
        self.momentum = momentum
        self.register_buffer("average", torch.tensor(float(initial)))

    def forward(self, num_pos: Tensor) -> Tensor:
        return self._update(num_pos.sum().clamp(min=1))

    def _update(self, count: Tensor) -> Tensor:
        """The average with `count`, () and > 0, in it; kept in a step that trains only."""
        average = self.momentum * self.average + (1 - self.momentum) * count
        if is_training_step(self):
            self.average = average
        return average


class GlobalEMAPosCount(EMAPosCount):
    """EMAPosCount of the mean over all processes; with one process it is EMAPosCount.

    The average is that of a process, the same in all of them, and so is `initial`: the first losses
    are as large with any number of processes. Older checkpoints of several processes
    hold the average of the total; the moving average forgets it within some dozens of steps.

    Args:
        momentum: weight of the old average, in [0, 1).
        initial: average before the first step, positives per process; finite and >= 1.

    Raises:
        ValueError: momentum or initial out of range.
    """

    def forward(self, num_pos: Tensor) -> Tensor:
        total = sum_over_processes(num_pos.sum()).clamp(min=1)
        return self._update(total / get_num_processes())


class GlobalPosCount(Normalizer):
    """Positives of the batches of all processes, at least 1, divided by the number of processes.

    The paper's "normalized by the number of anchors assigned to a ground-truth box".
    """

    def forward(self, num_pos: Tensor) -> Tensor:
        return sum_over_processes(num_pos.sum()).clamp(min=1).float() / get_num_processes()


class PerImagePosCount(Normalizer):
    """Each image by its own positives, at least 1, and then the mean over images, as in torchvision's RetinaNet.

    The objects of a crowded image weigh less than that of an image with one.
    """

    def forward(self, num_pos: Tensor) -> Tensor:
        return num_pos.clamp(min=1).float() * len(num_pos)


class Constant(Normalizer):
    """The same divisor per image whatever is in it, so that the loss of an image does not depend on its batch.

    Args:
        value: positives that an image is taken to have, finite and > 0. The default is what Detectron2's average starts with,
            100, for its schedules' two images per process.

    Raises:
        ValueError: value out of range.
    """

    def __init__(self, *, value: float = 50.0) -> None:
        super().__init__()
        check_number("value", value, "(0, inf)")
        self.value = float(value)

    def forward(self, num_pos: Tensor) -> Tensor:
        return torch.full((), self.value * len(num_pos), device=num_pos.device)
