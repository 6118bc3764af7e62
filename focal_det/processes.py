"""Sums over the processes of a distributed training, in plain torch."""

from torch import Tensor, distributed


def get_num_processes() -> int:
    """Processes that train together; 1 outside a distributed training."""
    return (
        distributed.get_world_size()
        if distributed.is_available() and distributed.is_initialized()
        else 1
    )


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of a tensor of the same shape over all processes, without gradient; the argument is not changed."""
    if get_num_processes() == 1:
        return values.detach()
    total = values.detach().clone()
    distributed.all_reduce(total)
    return total
