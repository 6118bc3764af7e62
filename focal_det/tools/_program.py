"""Shared by all programs: their parser and error handling.

A program is a module of this package with a docstring, whose first line `focal-det` lists, and a
function `main(argv)`, which passes two functions to `run_program`: one adds the arguments, one does
the work. It catches no errors: `run_program` reports them all in the same way.
"""

import argparse
import contextlib
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, Optional

from tqdm import tqdm

from focal_det.messages import describe_error, to_command_line

FAILED = 1  # the work was done, and its outcome is not good
REFUSED = 2  # something for the user to fix; one line says what
CRASHED = 3  # a bug of focal_det; with a traceback
INTERRUPTED = 130
_PACKAGE = Path(__file__).parents[1]


def run_program(
    name: str,
    doc: str,
    add_arguments: Callable[[argparse.ArgumentParser], None],
    run: Callable[[argparse.Namespace], Optional[int]],
    argv: Optional[Sequence[str]] = None,
    *,
    example: str,
    parser: Optional[argparse.ArgumentParser] = None,
) -> int:
    """Run a program with its arguments and return its exit code.

    Args:
        name: of the program, such as "loss-cdf".
        doc: its docstring, for `--help`.
        add_arguments: adds its arguments to a parser.
        run: does the work; returns the exit code, None for 0. The namespace it gets also has
            `command_line`, the whole command as text, to be stored with results, and `words`, the
            command-line arguments as given.
        argv: arguments; by default those of this process.
        example: a command that `--help` shows.
        parser: with the arguments of another library, to be extended.

    Raises:
        SystemExit: with `REFUSED` and one line on stderr for what the user can fix, with `CRASHED`
            and a traceback for a bug, with `INTERRUPTED` after Ctrl+C.
    """
    parser = make_parser(name, doc, example, parser)
    add_arguments(parser)
    words = sys.argv[1:] if argv is None else list(argv)
    args = _parse(parser, words)
    args.words = words
    args.command_line = to_command_line(["focal-det", name, *words])
    try:
        with _hide_progress(args.quiet):
            return run(args) or 0
    except KeyboardInterrupt:
        parser.exit(INTERRUPTED, f"\nfocal-det {name}: interrupted\n")
    except Exception as error:
        _exit_for(error, parser)


def _exit_for(error: Exception, parser: argparse.ArgumentParser) -> NoReturn:
    """Exit with one line for what the user can fix, with a traceback for a bug."""
    if is_for_user(error):
        parser.exit(REFUSED, f"{parser.prog}: {describe_error(error)}\n")
    traceback.print_exc()
    message = "This is a bug in focal_det: please report it with the traceback above"
    parser.exit(CRASHED, f"{parser.prog} crashed. {message}\n")


def _parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> argparse.Namespace:
    """Parse; options may stand between positional arguments unless KEY VALUE pairs come last."""
    try:
        return parser.parse_intermixed_args(words)
    except TypeError:  # argparse's way to refuse nargs=REMAINDER
        return parser.parse_args(words)


def is_for_user(error: BaseException) -> bool:
    """Whether an error is one the user can fix.

    OSError and ImportError count, and so does a ValueError raised in focal_det itself, whose
    message says what is wrong. A ValueError raised inside a library is a bug in focal_det.
    """
    if isinstance(error, (OSError, ImportError)):
        return True
    if not isinstance(error, ValueError):
        return False
    *_, innermost = traceback.walk_tb(error.__traceback__)
    frame, _ = innermost
    return _PACKAGE in Path(frame.f_code.co_filename).parents


def make_parser(
    name: str, doc: str, example: str, parser: Optional[argparse.ArgumentParser] = None
) -> argparse.ArgumentParser:
    """A parser whose help is the docstring of the program and an example."""
    summary, _, rest = doc.partition("\n\n")
    epilog = f"example:\n  {example}"
    if rest.strip():
        epilog = f"{rest.strip()}\n\n{epilog}"
    parser = parser or argparse.ArgumentParser()
    parser.prog = f"focal-det {name}"
    parser.description = summary
    parser.epilog = epilog
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--quiet", action="store_true", help="show no progress bars")
    return parser


@contextlib.contextmanager
def _hide_progress(is_quiet: bool) -> Iterator[None]:
    """Disable all progress bars in this process, Detectron2's included, if `is_quiet`."""
    show = tqdm.__init__

    def hide(self: tqdm, *args: Any, **kwargs: Any) -> None:
        show(self, *args, **{**kwargs, "disable": True})

    if is_quiet:
        tqdm.__init__ = hide
    try:
        yield
    finally:
        tqdm.__init__ = show
