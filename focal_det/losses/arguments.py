"""Checks of the arguments of losses: messages name the argument, its range and the value."""

from collections.abc import Sequence, Sized
from numbers import Integral, Real

import torch
from torch import Tensor


def check_number(name: str, value: float, interval: str) -> None:
    """Refuse a number outside an interval.

    Args:
        name: name of the argument, for the message.
        interval: such as "[0, 1]", "(0, 1)" or "[0, inf)"; a round bracket excludes the endpoint.

    Raises:
        ValueError: the value is outside the interval, NaN, or of a type that is not a number.
    """
    # numpy's numbers are Reals, too; tensors and strings from a config are not.
    if not isinstance(value, Real):
        raise ValueError(f"{name} must be a number in {interval}, got {value!r}")
    low, high = (float(x) for x in interval[1:-1].split(","))
    is_at_open_end = (interval[0] == "(" and value == low) or (
        interval[-1] == ")" and value == high
    )
    # Every comparison with NaN is false, so NaN is refused here, too.
    if is_at_open_end or not low <= value <= high:
        raise ValueError(f"{name} must be in {interval}, got {value}")


def check_integer(name: str, value: int, interval: str) -> None:
    """Refuse a value that is not an integer or lies outside an interval; see `check_number`."""
    if not isinstance(value, Integral):
        raise ValueError(f"{name} must be an integer in {interval}, got {value!r}")
    check_number(name, value, interval)


def check_alpha(alpha: float) -> None:
    """Refuse a weight of the positive class that is neither in [0, 1] nor -1 (no weighting)."""
    if not isinstance(alpha, Real) or not (0 <= alpha <= 1 or alpha == -1):
        raise ValueError(f"alpha must be in [0, 1], or -1 for no weighting, got {alpha}")


def check_alpha_and_gamma(alpha: float, gamma: float) -> None:
    """Refuse parameters outside the ranges of the focal loss; see `focal_loss_from_labels`."""
    check_alpha(alpha)
    check_number("gamma", gamma, "[0, inf)")


def check_per_class(name: str, values: Sequence[float], interval: str) -> None:
    """Refuse a list with a value outside an interval; the message names the class."""
    for index, value in enumerate(values):
        check_number(f"{name}[{index}]", value, interval)


def check_length(name: str, values: Sized, num_classes: int) -> None:
    """Refuse a non-empty list whose length is not the number of classes."""
    if len(values) not in (0, num_classes):
        raise ValueError(
            f"{name} must have one value for each of the {num_classes} classes, got {len(values)}"
        )


def check_tensor_range(name: str, values: Tensor, low: int, high: int) -> None:
    """Refuse NaN and values outside [low, high] in a CPU tensor.

    Other devices are not checked: reading a value would wait for the device.
    """
    # While torch.compile traces, there are no values to compare.
    if values.device.type != "cpu" or values.numel() == 0 or torch.compiler.is_compiling():
        return
    # Under torch.func.vmap, unwrap to get the values of all examples at once: Python cannot branch
    # on a comparison that is batched per example.
    smallest, largest = torch.func.debug_unwrap(values).aminmax()
    if not (smallest >= low and largest <= high):
        raise ValueError(
            f"{name} must be in [{low}, {high}], got values from {smallest} to {largest}"
        )


def check_logits_and_labels(logits: Tensor, labels: Tensor, num_classes: int) -> None:
    """Refuse logits (..., C) and labels (...) of a wrong dtype or shape.

    On the CPU, also labels out of range. Logits must be floating point; labels must be int64 in
    {-1, 0..K}, where K = num_classes; C is K, or K + 1 with a logit for background.
    """
    check_floating(logits)
    # Later, gather would refuse most other dtypes with a message about indices; only newer versions
    # of torch accept int32 there.
    if labels.dtype != torch.int64:
        raise ValueError(f"labels must be int64, got {labels.dtype}")
    if logits.shape[:-1] != labels.shape:
        raise ValueError(
            f"labels must have shape {tuple(logits.shape[:-1])}, got {tuple(labels.shape)}"
        )
    check_tensor_range("labels", labels, -1, num_classes)


def check_floating(logits: Tensor) -> None:
    """Refuse logits of an integer dtype."""
    if not logits.is_floating_point():
        raise ValueError(f"logits must be floating point, got {logits.dtype}")


def to_float(logits: Tensor) -> Tensor:
    """Logits in float32, or unchanged if their dtype is wider; ValueError for integers."""
    check_floating(logits)
    # In float16, the terms of easy negatives (below 6e-8) would become 0, and sums above 65504
    # infinite; bfloat16 keeps fewer than three decimal digits.
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
