"""Arguments that several programs share."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional

_PICTURES = (".png", ".svg", ".pdf")


def add_config_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """`--config-file`, and KEY VALUE pairs, which must be the last arguments: call this last."""
    parser.add_argument(
        "--config-file",
        required=required,
        metavar="FILE",
        help="a .yaml file, or the name of a config that ships with focal_det",
    )
    parser.add_argument(
        "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="changes to the config, last"
    )


def add_output_argument(
    parser: argparse.ArgumentParser, what: str, default: Optional[str] = None, **kwargs: Any
) -> None:
    """`--output`: the file or folder that a program writes its results to.

    Args:
        what: what is written, for the help text.
        default: without one, `--output` is required, unless `kwargs` say otherwise.
        kwargs: of `add_argument`, such as `required=False`.
    """
    kwargs.setdefault("required", default is None)
    kwargs.setdefault("metavar", "PATH")
    if default is not None:
        what += " (default: %(default)s)"
        kwargs["default"] = Path(default)
    parser.add_argument("--output", type=Path, help=what, **kwargs)


def at_least(least: int) -> Callable[[str], int]:
    """An argparse type: an integer that is not below `least`."""

    def parse(text: str) -> int:
        number = int(text)
        if number < least:
            raise argparse.ArgumentTypeError(f"must be >= {least}, got {number}")
        return number

    parse.__name__ = "int"  # argparse says "invalid int value: 'x'"
    return parse


def add_json_argument(parser: argparse.ArgumentParser) -> None:
    """`--json`: print the results as JSON on stdout, and nothing else there."""
    parser.add_argument("--json", action="store_true", help="print the results as JSON")


def check_picture_file(file: Path, advice: str = "") -> None:
    """Refuse an `--output` whose suffix is not that of a supported picture format.

    Raises:
        ValueError: another suffix; the message ends with `advice`.
    """
    if file.suffix.lower() not in _PICTURES:
        message = f"--output must end in {', '.join(_PICTURES)}, got {str(file)!r}"
        raise ValueError("; ".join(filter(None, (message, advice))))
