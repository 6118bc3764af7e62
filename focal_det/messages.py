"""Text for users and from them: nearest known names, safe text, commands and their values."""

import ast
import difflib
import os
import shlex
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

MAX_NAME = 80  # characters of a class name, or of one value among several
_MAX_LINE = 2000  # characters of a whole text
_MAX_KNOWN = 20  # up to this number, all known names are listed
_NUM_NEAREST = 8  # names listed if there are more
# Environment variables without which a command may find another data set or loss, or none.
_VARIABLES = ("FOCAL_DET_DATASETS", "FOCAL_DET_ENV_MODULE")
_OBEYED_IN_QUOTES = set('"$`\\!')  # characters that the shell obeys inside double quotes
_MIN_SIMILARITY = 0.5  # of a name suggested by "Did you mean ...?"


class UnknownNameError(KeyError, ValueError):
    """Unknown name in a config or a command; the message suggests the nearest known one.

    It is a KeyError, as look-ups raise, and a ValueError, as every bad value raises.
    """

    def __str__(self) -> str:
        # KeyError would show its message as a key, in quotes.
        return str(self.args[0])


def describe_unknown(kind: str, name: str, known: Iterable[str], *, advice: str = "") -> str:
    """Error text for an unknown name: the closest match, then the known names.

    If many names are known, only the closest few are listed. A name that differs only in case is
    the closest.

    Args:
        kind: what the name stands for, such as "loss normalizer".
        name: the unknown name.
        known: all known names, in any order.
        advice: a sentence to put before the closest match.
    """
    known = sorted(known)
    parts = [f"Unknown {kind} {name!r}."]
    if advice:
        parts.append(advice)
    nearest = _find_nearest(name, known, num=1, cutoff=_MIN_SIMILARITY)
    if nearest:
        parts.append(f"Did you mean {nearest[0]!r}?")
    shown = known
    if len(known) > _MAX_KNOWN:
        shown = _find_nearest(name, known, num=_NUM_NEAREST, cutoff=0)
    names = ", ".join(shown) or "none"
    if len(shown) < len(known):
        names += f" and {len(known) - len(shown)} more"
    return f"{' '.join(parts)} Known: {names}."


def _find_nearest(name: str, known: Sequence[str], *, num: int, cutoff: float) -> list[str]:
    """The `num` most similar names, compared first without case; none below `cutoff`."""
    matcher = difflib.SequenceMatcher(b=name)
    folded_matcher = difflib.SequenceMatcher(b=name.casefold())
    similarities = {}
    for other in known:
        matcher.set_seq1(other)
        folded_matcher.set_seq1(other.casefold())
        similarities[other] = (folded_matcher.ratio(), matcher.ratio())
    likely = [x for x in known if similarities[x][0] >= cutoff]
    return sorted(likely, key=similarities.__getitem__, reverse=True)[:num]


def shorten(values: Sequence[Any], most: int = 8) -> str:
    """The first values, separated by commas, and the number of the others."""
    shown = ", ".join(to_line(str(x), MAX_NAME) for x in values[:most])
    if len(values) > most:
        return f"{shown} and {len(values) - most} more"
    return shown


def to_line(text: str, most: int = _MAX_LINE) -> str:
    """Text from a file as one line that is safe on terminals, pages and pictures.

    Control characters, which a terminal would obey, become escapes such as `\\x1b`. A text longer
    than `most` characters loses its middle.
    """
    if len(text) > most:
        text = f"{text[: most // 2]}...{text[3 + len(text) - most + most // 2 :]}"
    text = " ".join(text.splitlines())
    if text.isprintable():
        return text
    return "".join(map(_escape, text))


def _escape(character: str) -> str:
    # Python calls spaces other than U+0020 not printable, but they are harmless.
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return ascii(character)[1:-1]


def describe_error(error: BaseException) -> str:
    """The message of an exception, without the quotes that KeyError puts around it."""
    if len(error.args) == 1:
        return str(error.args[0])
    return str(error)


def to_command_line(words: Sequence[str]) -> str:
    """A command for a POSIX shell, with the environment variables that it depends on."""
    variables = {x: os.environ.get(x) for x in _VARIABLES}
    settings = [f"{name}={_quote(value)}" for name, value in variables.items() if value]
    return " ".join([*settings, *map(_quote, words)])


def _quote(word: str) -> str:
    # `shlex.quote` would make "('cells_train',)" illegible, as it only knows single quotes.
    if "'" in word and not set(word) & _OBEYED_IN_QUOTES:
        return f'"{word}"'
    return shlex.quote(word)


def parse_value(word: str) -> Any:
    """The value of a word of a command: a Python literal, or the word itself."""
    try:
        return ast.literal_eval(word)
    # TypeError and the others: brackets that are no literal, or too many of them.
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        return word
