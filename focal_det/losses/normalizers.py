"""Loss normalizers: from the positives of each image to the divisor of the summed losses.

DistributedDataParallel averages gradients over processes. If every process has the same number of
images, the average of the divided losses equals the loss of the whole batch in one process. There
are three exceptions: EMAPosCount; SampleCount, unless all processes have equally many samples; and
the first few dozen steps of GlobalEMAPosCount, until its per-process `initial` no longer counts.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .arguments import check_integer, check_number
from .state import OptionalBuffers, get_num_processes, is_training_step, sum_over_processes
from .targets import DenseTargets


class Normalizer(nn.Module, ABC):
    """Base of all normalizers. A config selects one by the name of its class.

    Attributes:
        of_samples: True if it divides by the number of sampled anchors, positive and negative;
            without sampling, such a divisor has nothing to do with the number of objects.
    """

    of_samples: bool = False

    def count(self, targets: DenseTargets) -> Tensor:
        """(N,) int64, what `forward` takes: positives or samples of each image."""
        if self.of_samples:
            return targets.num_samples
        return targets.num_pos

    def compute_divisor(self, targets: DenseTargets) -> Tensor:
        """() or (N,) float32 > 0, the divisor of a batch."""
        divisor: Tensor = self(self.count(targets))
        return divisor

    @abstractmethod
    def forward(self, num_pos: Tensor) -> Tensor:
        """The divisor of a batch.

        Args:
            num_pos: (N,) int64, positives of each image; if `of_samples`, anchors that are not
                ignored.

        Returns:
            () or (N,) float32, > 0.
        """


class EMAPosCount(OptionalBuffers, Normalizer):
    """Moving average of the number of positives in this process's batch, as in Detectron2.

    Detectron2's RetinaNet keeps the average in a Python attribute, which starts anew when a run is
    resumed; here it is a buffer. Every process has its own average. `focal-det train` restores each
    of them; other trainers store only that of the first process, from which all processes resume.
    (GlobalEMAPosCount has the same average in all processes.) A checkpoint without the buffer loads
    without complaint, and the average keeps its value. A batch without positives counts as one
    positive. Only training steps move the average, not the forwards of PreciseBN.

    Args:
        momentum: weight of the old average, in [0, 1).
        initial: average before the first step, finite and >= 1.

    Raises:
        ValueError: momentum or initial out of range.
    """

    average: Tensor

    def __init__(self, *, momentum: float = 0.9, initial: float = 100.0) -> None:
        super().__init__()
        check_number("momentum", momentum, "[0, 1)")
        check_number("initial", initial, "[1, inf)")
        self.momentum = momentum
        self.register_buffer("average", torch.tensor(float(initial)))

    def forward(self, num_pos: Tensor) -> Tensor:
        return self._update(num_pos.sum().clamp(min=1))

    def _update(self, count: Tensor) -> Tensor:
        """The average including a () count > 0; stored in training steps only."""
        average = self.momentum * self.average + (1 - self.momentum) * count
        # A new tensor, as a backward that is still to come needs the divisor of its own step.
        if is_training_step(self):
            self.average = average
        return average


class GlobalEMAPosCount(EMAPosCount):
    """Moving average of the mean number of positives per process; EMAPosCount with one process.

    The average and `initial` are per process, so the first losses have the same size with any
    number of processes. Older checkpoints of runs with several processes hold the average of the
    total instead; the moving average forgets it within a few dozen steps.

    Args:
        momentum: weight of the old average, in [0, 1).
        initial: average before the first step, positives per process; finite and >= 1.

    Raises:
        ValueError: momentum or initial out of range.
    """

    def forward(self, num_pos: Tensor) -> Tensor:
        # Clamped after the sum, so that a process without positives adds 0.
        total = sum_over_processes(num_pos.sum()).clamp(min=1)
        return self._update(total / get_num_processes())


class GlobalPosCount(Normalizer):
    """Positives in the batches of all processes, at least 1, divided by the number of processes.

    The focal loss paper's "normalized by the number of anchors assigned to a ground-truth box".
    """

    def forward(self, num_pos: Tensor) -> Tensor:
        # The mean per process, as DistributedDataParallel averages gradients over processes.
        return sum_over_processes(num_pos.sum()).clamp(min=1).float() / get_num_processes()


class PerImagePosCount(Normalizer):
    """Divides the loss of each image by its positives, at least 1, and averages over images.

    As in torchvision's RetinaNet: an object in a crowded image weighs less than the only object of
    another image.
    """

    def forward(self, num_pos: Tensor) -> Tensor:
        # Times N, as the detector adds up the images: the result is their mean.
        return num_pos.clamp(min=1).float() * len(num_pos)


class Constant(Normalizer):
    """The same divisor for every image, so that the loss of an image does not depend on its batch.

    Args:
        value: assumed positives per image, finite and > 0. By default 50: Detectron2's average
            starts at 100, and its schedules have two images per process.

    Raises:
        ValueError: value out of range.
    """

    def __init__(self, *, value: float = 50.0) -> None:
        super().__init__()
        check_number("value", value, "(0, inf)")
        self.value = float(value)

    def forward(self, num_pos: Tensor) -> Tensor:
        # Filled on the device: copying a number from the CPU would wait for the device.
        return torch.full((), self.value * len(num_pos), device=num_pos.device)


class SampleSize(Constant):
    """The nominal number of sampled anchors per image: the divisor of Detectron2's RPN.

    Args:
        batch_size_per_image: anchors per image, >= 1. A config gives Detectron2's
            BATCH_SIZE_PER_IMAGE.

    Raises:
        ValueError: batch_size_per_image out of range.
    """

    of_samples = True

    def __init__(self, *, batch_size_per_image: int = 256) -> None:
        check_integer("batch_size_per_image", batch_size_per_image, "[1, inf)")
        super().__init__(value=batch_size_per_image)


class SampleCount(Normalizer):
    """Anchors of this process's batch that are not ignored: the divisor of Detectron2's box head.

    At least 1, for a batch without any.
    """

    of_samples = True

    def forward(self, num_samples: Tensor) -> Tensor:
        return num_samples.sum().clamp(min=1).float()
