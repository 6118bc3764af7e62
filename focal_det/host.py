"""The installed Detectron2: one clear error when there is none, and the few places where 0.5 and main differ for us."""

import logging
import re
from collections.abc import Callable
from typing import Union

# Of Detectron2's layers: a name, or a function of the number of channels.
Norm = Union[str, Callable]

# A child of the logger that Detectron2's `default_setup` sends to the terminal and to OUTPUT_DIR/log.txt.
LOGGER_NAME = "detectron2.focal_det"
_HOW_TO_GET_IT = """\
This part of focal_det needs Detectron2, which is not installed. Get it in one of these ways:
  pip install 'git+https://github.com/facebookresearch/detectron2.git'  (newest; compiles C++)
  conda install -c conda-forge detectron2                               (0.6, compiled)
  python dev/build_detectron2.py               (in a checkout of focal_det; needs no compiler)
focal_det.losses works without it."""
_COLOR_CODE = re.compile(r"\x1b\[[0-9;]*m")


def has_event_storage() -> bool:
    """Whether a trainer (or a user's `EventStorage`) is there to receive scalars; main has this function, 0.5 has not."""
    from detectron2.utils import events

    return len(events._CURRENT_STORAGE_STACK) > 0


def put_scalar(name: str, value: float) -> None:
    """Record a number with the trainer, if there is one."""
    from detectron2.utils.events import get_event_storage

    if has_event_storage():
        get_event_storage().put_scalar(name, value)


def get_head_norm(norm: Norm) -> Norm:
    """A norm for Detectron2's RetinaNetHead, which in 0.6 first makes one of a single channel to see its type.

    A GroupNorm of 32 groups has none of these: torch refuses it since 1.11. Main asks for 32 channels.
    """
    from detectron2.layers import get_norm
    from torch import nn

    if norm != "GN":
        return norm
    return lambda channels: nn.GroupNorm(1, 1) if channels == 1 else get_norm("GN", channels)


def set_data_loader(trainer, data_loader) -> None:
    """Give a SimpleTrainer another data loader; main has a method for it, 0.5 has not."""
    if hasattr(trainer, "reset_data_loader"):
        trainer.reset_data_loader(lambda: data_loader)
    else:
        trainer.data_loader, trainer._data_loader_iter = data_loader, iter(data_loader)


class _PlainFormatter(logging.Formatter):
    """Another formatter's text without colour codes."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self._formatter = formatter

    def format(self, record: logging.LogRecord) -> str:
        return _COLOR_CODE.sub("", self._formatter.format(record))


def keep_log_files_plain(output_dir: str) -> None:
    """Log without colour codes wherever the log is not a terminal; call it before `default_setup`.

    Detectron2 colours the config with Pygments and the names of missing weights with termcolor,
    in the messages themselves, so that log.txt has the codes, too.
    """
    from detectron2.utils import comm
    from detectron2.utils.logger import setup_logger

    rank = comm.get_rank()
    # The same calls as in default_setup, which then gets these loggers from setup_logger's cache.
    loggers = (
        setup_logger(output_dir, distributed_rank=rank, name="fvcore"),
        setup_logger(output_dir, distributed_rank=rank),
    )
    for handler in (handler for logger in loggers for handler in logger.handlers):
        is_terminal = isinstance(handler, logging.StreamHandler) and handler.stream.isatty()
        if handler.formatter is not None and not is_terminal:
            handler.setFormatter(_PlainFormatter(handler.formatter))


def require_detectron2() -> None:
    """Import Detectron2, for the packages that cannot do without; they call this first.

    Raises:
        ImportError: there is none; says how to get one.
    """
    try:
        import detectron2  # noqa: F401
    except ImportError as error:
        if "partially initialized module 'focal_det." in str(error):
            raise ImportError(
                "With DETECTRON2_ENV_MODULE=focal_det.env, import detectron2 before focal_det.config"
            ) from error
        if error.name != "detectron2" or not isinstance(error, ModuleNotFoundError):
            raise
        raise ImportError(_HOW_TO_GET_IT) from None
