"""Words of error messages: the nearest known name, a shortened list, a text that is safe to print."""

import difflib
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

MAX_NAME = 80  # characters of a class name, or of one value among several
_MAX_LINE = 2000  # characters of a whole text
_MAX_KNOWN = 20  # names listed in full
_NUM_NEAREST = 8  # names listed where there are more
_MIN_SIMILARITY = 0.5  # of a name that is offered as what was meant


class UnknownNameError(KeyError, ValueError):
    """A name that a config or a command has, and nobody knows; the message names the nearest one.

    A KeyError for those who look names up, a ValueError as all bad values are.
    """

    def __str__(self) -> str:
        # KeyError shows its message as a quoted key.
        return str(self.args[0])


def describe_unknown(kind: str, name: str, known: Iterable[str], *, advice: str = "") -> str:
    """Error text for an unknown name: the closest match, then the known names.

    Of many known names, only the closest few are listed. Names that differ in case alone are the
    closest of all.

    Args:
        kind: what the name stands for, such as "loss normalizer".
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
    """The first values as a list in words, and how many more there are."""
    shown = ", ".join(to_line(str(x), MAX_NAME) for x in values[:most])
    if len(values) > most:
        return f"{shown} and {len(values) - most} more"
    return shown


def to_line(text: str, most: int = _MAX_LINE) -> str:
    """A text from a file as one line that is safe on terminals, pages and pictures.

    Control characters, which a terminal would obey, become escapes such as `\\x1b`. A text longer
    than `most` loses its middle.
    """
    if len(text) > most:
        text = f"{text[: most // 2]}...{text[3 + len(text) - most + most // 2 :]}"
    text = " ".join(text.splitlines())
    if text.isprintable():
        return text
    return "".join(map(_escape, text))


def _escape(character: str) -> str:
    # Spaces other than U+0020 are not "printable", but harmless.
    if character.isprintable() or unicodedata.category(character) == "Zs":
        return character
    return ascii(character)[1:-1]


def describe_error(error: BaseException) -> str:
    """The message of an exception; that of a KeyError without the quotes around it."""
    return str(error.args[0] if len(error.args) == 1 else error)
