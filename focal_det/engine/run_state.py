"""What a run needs to continue exactly, besides model, optimizer and scheduler.

It is the state of every process: its place in the data, its random generators, its buffers and what
its hooks remember. A checkpoint holds it as plain values and tensors under "run_state", which
Detectron2 ignores when it loads the checkpoint.
"""

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from detectron2.utils import comm
from torch import Tensor, nn


def gather_run_state(parts: Mapping[str, Any], model: nn.Module) -> dict[str, Any]:
    """Gather the state of all processes in the first one; a collective operation.

    Args:
        parts: objects of this process with a `state_dict`, by name.
        model: its buffers can differ between processes.

    Returns:
        In the first process, "num_processes" and "processes", their states by rank; in the others,
        {}. The "buffers" of a state are only those that differ from the first process's, because a
        checkpoint has the first process's with the model.
    """
    states = comm.gather(
        {
            **{name: part.state_dict() for name, part in parts.items()},
            "generators": _get_generators(),
            "buffers": {name: x.cpu() for name, x in model.named_buffers()},
        }
    )
    if not states:
        return {}
    first = dict(states[0]["buffers"])
    for state in states:
        buffers = state["buffers"]
        state["buffers"] = {k: v for k, v in buffers.items() if not _is_same(v, first[k])}
    return {"num_processes": len(states), "processes": states}


def restore_run_state(
    run_state: Mapping[str, Any], parts: Mapping[str, Any], model: nn.Module
) -> None:
    """Restore the state of this process from what `gather_run_state` returned.

    A part that the state lacks, as in a checkpoint of an older version, stays unchanged.
    """
    state = run_state["processes"][comm.get_rank()]
    for name, part in parts.items():
        if name in state:
            part.load_state_dict(state[name])
    _set_generators(state["generators"])
    buffers = dict(model.named_buffers())
    for name, value in state["buffers"].items():
        buffers[name].copy_(value)


def _is_same(a: Tensor, b: Tensor) -> bool:
    # A NaN would differ from itself.
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


@contextmanager
def kept_generators() -> Iterator[None]:
    """Leave the random generators of the CPU as they were before the block."""
    python = random.getstate()
    array = np.random.get_state()
    tensor = torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(array)
        torch.set_rng_state(tensor)


def _get_generators() -> dict[str, Any]:
    """The states of Python's, numpy's and torch's generators."""
    version, words, gauss = random.getstate()
    kind, array, *others = np.random.get_state()
    return {
        "python": [version, list(words), gauss],
        "numpy": [kind, np.asarray(array).tolist(), *others],
        **get_torch_generators(),
    }


def get_torch_generators() -> dict[str, Tensor]:
    """The states of torch's generators: "torch" and, of the current GPU, "cuda"."""
    states = {"torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_torch_generators(states: Mapping[str, Tensor]) -> None:
    """Restore what `get_torch_generators` returned; what is missing stays as it is."""
    if "torch" in states:
        torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def _set_generators(states: Mapping[str, Any]) -> None:
    version, words, gauss = states["python"]
    random.setstate((version, tuple(words), gauss))
    kind, array, *others = states["numpy"]
    np.random.set_state((kind, np.array(array, dtype=np.uint32), *others))
    set_torch_generators(states)
