"""The config that `focal-det weights` writes."""

import re
from collections.abc import Sequence
from pathlib import Path

from detectron2.config import CfgNode

from .class_weights import get_weight_values
from .config_file import write_config
from .weights_report import WeightsReport, describe_method, make_table

_FIRST_LINE = "Class weights of"
_SUFFIXES = (".yaml", ".yml")


def check_files(config_file: Path, output: Path) -> None:
    """Refuse to write over anything but an older config of this kind.

    Args:
        config_file: that the written one will be based on.
        output: the file to write.

    Raises:
        ValueError: a file is not a yaml file, or `output` is in use.
    """
    if config_file.suffix not in _SUFFIXES:
        raise ValueError(f"--config-file must be a .yaml file, got {config_file}")
    if output.suffix not in _SUFFIXES:
        raise ValueError(f"--output must be a .yaml file, got {output}")
    if output.exists() and not output.read_text().startswith(f"# {_FIRST_LINE}"):
        raise ValueError(
            f"--output {output} exists and is not from this program; "
            "remove it or choose another name"
        )
    # Its own base may be an older config of this kind.
    if output.resolve() in _find_bases(config_file):
        raise ValueError(
            f"--output {output} is --config-file or one of its bases; choose another name"
        )


def _find_bases(config_file: Path) -> list[Path]:
    """The config file and those that it is based on, as far as they are files here."""
    files = [config_file.resolve()]
    while files[-1].is_file():
        base = re.search(r"^_BASE_:\s*[\"']?([^\"'\s]+)", files[-1].read_text(), re.MULTILINE)
        if base is None:
            break
        file = (files[-1].parent / base.group(1)).resolve()
        # Files that are based on each other are reported when the config is loaded.
        if file in files:
            break
        files.append(file)
    return files


def write_weights(
    report: WeightsReport,
    cfg: CfgNode,
    config_file: Path,
    opts: Sequence[str],
    output: Path,
    command: str,
) -> None:
    """Write a config on top of `config_file` with alpha and pi per class.

    Args:
        opts: KEY VALUE pairs that are merged in `cfg`; they are written as well.
        command: that is run, for the comment.
    """
    header = [
        f"{_FIRST_LINE} {report.title}",
        *describe_method(report),
        f"Made by: {command}",
        "",
        *make_table(report.weights),
    ]
    values = get_weight_values(report.weights, report.options.max_alpha)
    write_config(output, config_file, cfg, opts, values, header)
