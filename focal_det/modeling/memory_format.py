"""The memory format of the images of a batch."""

import torch
from torch import Tensor


def to_fast_layout(images: Tensor) -> Tensor:
    """(N, 3, H, W) images, channels last where that makes convolutions faster.

    It does so on a CPU, and on a GPU in mixed precision. The network keeps the layout, so that the
    head's (N, A*C, Hi, Wi) outputs become (N, Ri, C) without a copy.
    """
    # `is_autocast_enabled()` asks about CUDA; TorchScript does not know its device argument.
    is_faster = images.device.type == "cpu" or (images.is_cuda and torch.is_autocast_enabled())
    if not is_faster:
        return images
    return images.contiguous(memory_format=torch.channels_last)
