"""Loss normalizers: from the number of positives of each image to the divisor of the summed losses.

A normalizer is a module; `forward` takes `num_pos`, (N,) int64 positives per image, and returns a float32 divisor, () or (N,).
Register one with `@NORMALIZER_REGISTRY.register()`; its arguments are the keys of `MODEL.FOCAL_DET.NORMALIZER.ARGS.<name>`.
"""

import torch
from torch import Tensor, distributed, nn

from focal_det.registry import NORMALIZER_REGISTRY


@NORMALIZER_REGISTRY.register()
class EMAPosCount(nn.Module):
    """Exponential moving average of the positives of this process's batch, as in Detectron2's RetinaNet.

    Detectron2 keeps the average in a Python attribute, which a resumed run starts anew; here it is a buffer. A checkpoint
    without the buffer loads without complaint and starts it at `initial`.

    Args:
        momentum: weight of the old average, in [0, 1).
        initial: average before the first step, > 0.
    """

    def __init__(self, *, momentum: float = 0.9, initial: float = 100.0) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        if not initial > 0:
            raise ValueError(f"initial must be > 0, got {initial}")
        self.momentum = momentum
        self.register_buffer("average", torch.tensor(float(initial)))

    def forward(self, num_pos: Tensor) -> Tensor:
        count = num_pos.sum().clamp(min=1)
        average = self.momentum * self.average + (1 - self.momentum) * count
        if self.training:
            self.average.copy_(average)
        return average

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        state_dict.setdefault(prefix + "average", self.average)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


@NORMALIZER_REGISTRY.register()
class GlobalPosCount(nn.Module):
    """Positives of the batch over all processes, divided by the number of processes, at least 1 / processes.

    DistributedDataParallel averages gradients over processes, so this divisor makes the loss of a batch independent of how many
    processes share it: the paper's "normalized by the number of anchors assigned to a ground-truth box".
    """

    def forward(self, num_pos: Tensor) -> Tensor:
        count = num_pos.sum().float()
        if not (distributed.is_available() and distributed.is_initialized()):
            return count.clamp(min=1)
        distributed.all_reduce(count)
        return count.clamp(min=1) / distributed.get_world_size()
