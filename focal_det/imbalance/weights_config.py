"""The config that `focal-det weights` writes."""

from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from .class_weights import get_weight_values
from .config_file import check_written_file, get_options, warn_unread, write_config
from .weights_report import WeightsReport, describe_method, make_table

_FIRST_LINE = "Class weights of"


def check_weights_file(file: Path, config_file: str) -> None:
    """Refuse an `--output` file that `write_weights` must not write; see `check_written_file`."""
    check_written_file("--output", file, config_file, _FIRST_LINE)


def write_weights(
    report: WeightsReport,
    cfg: CfgNode,
    config_file: str,
    opts: Sequence[str],
    output: Path,
    command: str,
) -> None:
    """Write a config on top of `config_file` with alpha and pi per class.

    Args:
        opts: KEY VALUE pairs that `cfg` includes; they are written as well.
        command: the command that was run, for the comment.
    """
    warn_unread(cfg)
    header = [
        f"{_FIRST_LINE} {report.title}",
        *describe_method(report),
        f"Made by: {command}",
        "",
        *make_table(report.weights),
    ]
    values = get_options(cfg, opts)
    values.update(get_weight_values(report.weights, report.settings, report.options.max_alpha))
    write_config(output, Path(config_file), values, header)
