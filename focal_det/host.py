"""The installed Detectron2: one clear error if it is missing, and what differs from 0.5 to main."""

import logging
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Union

# As Detectron2's layers take it: a name, or a function of the number of channels.
Norm = Union[str, Callable[[int], Any]]

# A child of the logger that Detectron2's `default_setup` sends to the terminal and to
# OUTPUT_DIR/log.txt.
LOGGER_NAME = "detectron2.focal_det"
_HOW_TO_GET_IT = """\
This part of focal_det needs Detectron2, which is not installed. Get it in one of these ways:
  pip install 'git+https://github.com/facebookresearch/detectron2.git'  (newest; compiles C++)
  conda install -c conda-forge detectron2                               (0.6, compiled)
  python dev/build_detectron2.py               (in a checkout of focal_det; needs no compiler)
focal_det.losses works without it."""
_COLOR_CODE = re.compile(r"\x1b\[[0-9;]*m")


def has_event_storage() -> bool:
    """Whether a trainer, or a user's `EventStorage`, receives scalars.

    Detectron2's main has this function; 0.5 and 0.6 do not.
    """
    from detectron2.utils import events

    return len(events._CURRENT_STORAGE_STACK) > 0


def put_scalar(name: str, value: float) -> None:
    """Record a number in the trainer's metrics, if there is a trainer."""
    from detectron2.utils.events import get_event_storage

    if has_event_storage():
        get_event_storage().put_scalar(name, value)


def get_head_norm(norm: Norm) -> Norm:
    """Norm to give to Detectron2's RetinaNetHead, so that "GN" works in 0.6, too.

    To see the type of the norm, 0.6 first makes one with a single channel, and since 1.11 torch
    refuses a GroupNorm of 32 groups and one channel. Main makes one with 32 channels.
    """
    from detectron2.layers import get_norm
    from torch import nn

    if norm != "GN":
        return norm

    def make_group_norm(channels: int) -> nn.Module:
        if channels == 1:
            return nn.GroupNorm(1, 1)
        return get_norm("GN", channels)

    return make_group_norm


def create_local_group(num_local: int) -> None:
    """Make the process group of this machine, which `comm.get_local_rank` needs.

    Detectron2's main has a function for it; 0.5 and 0.6 do it in their launcher, for GPUs only.

    Args:
        num_local: processes on each machine.
    """
    from detectron2.utils import comm
    from torch import distributed

    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(num_local)
        return
    for first in range(0, comm.get_world_size(), num_local):
        ranks = list(range(first, first + num_local))
        group = distributed.new_group(ranks)
        if comm.get_rank() in ranks:
            comm._LOCAL_PROCESS_GROUP = group


@contextmanager
def parallelize_on_cpu(device: str) -> Iterator[None]:
    """Let Detectron2's trainers wrap a model on the CPU in DistributedDataParallel.

    They pass it a GPU for each process, which torch refuses for such a model.

    Args:
        device: MODEL.DEVICE; on a GPU nothing changes.
    """
    from detectron2.engine import defaults

    if not device.startswith("cpu"):
        yield
        return
    wrapper = defaults.DistributedDataParallel

    def wrap(model: Any, device_ids: Any = None, **kwargs: Any) -> Any:
        return wrapper(model, **kwargs)

    defaults.DistributedDataParallel = wrap
    try:
        yield
    finally:
        defaults.DistributedDataParallel = wrapper


class _PlainFormatter(logging.Formatter):
    """Another formatter's text without colour codes."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        return _COLOR_CODE.sub("", self._formatter.format(record))


def keep_log_files_plain(output_dir: str) -> None:
    """Log without colour codes except to terminals; call this before `default_setup`.

    Detectron2 colours the config with Pygments and the names of missing weights with termcolor, in
    the messages themselves, so that the codes would end up in log.txt, too.
    """
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    rank = comm.get_rank()
    # The same calls as in default_setup, which then gets these loggers from the cache of
    # setup_logger.
    loggers = (
        setup_logger(output_dir, distributed_rank=rank, name="fvcore"),
        setup_logger(output_dir, distributed_rank=rank),
    )
    for handler in (handler for logger in loggers for handler in logger.handlers):
        is_terminal = isinstance(handler, logging.StreamHandler) and handler.stream.isatty()
        if handler.formatter is not None and not is_terminal:
            handler.setFormatter(_PlainFormatter(handler.formatter))


def require_detectron2() -> None:
    """Import Detectron2; packages that need it call this first.

    Raises:
        ImportError: Detectron2 is not installed; the message explains how to install it.
    """
    try:
        import detectron2  # noqa: F401
    except ImportError as error:
        if "partially initialized module 'focal_det." in str(error):
            # Detectron2's import has called focal_det.env, which needs the half-imported module.
            raise ImportError(
                "With DETECTRON2_ENV_MODULE=focal_det.env, import detectron2 before "
                "focal_det.config"
            ) from error
        # The advice does not help with another missing module or a broken build.
        if error.name != "detectron2" or not isinstance(error, ModuleNotFoundError):
            raise
        raise ImportError(_HOW_TO_GET_IT) from None
