"""Registries of components that a config selects by name, and how one is built from its arguments."""

import difflib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from fvcore.common.registry import Registry

_MAX_KNOWN, _NUM_NEAREST = 20, 8


def describe_unknown(kind: str, name: str, known: Iterable[str], *, advice: str = "") -> str:
    """Error text for an unknown name: the closest match, then the known names (of many, the closest).

    `advice` comes before both. Names that differ in upper and lower case only are as close as can be.
    """
    known = sorted(known)
    nearest = _find_nearest(name, known, n=1, cutoff=0.5)
    hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
    is_short = len(known) <= _MAX_KNOWN
    shown = known if is_short else _find_nearest(name, known, n=_NUM_NEAREST, cutoff=0)
    more = f" and {len(known) - len(shown)} more" if len(shown) < len(known) else ""
    return f"Unknown {kind} {name!r}.{advice and ' '}{advice}{hint} Known: {', '.join(shown) or 'none'}{more}."


def _find_nearest(name: str, known: Sequence[str], *, n: int, cutoff: float) -> list[str]:
    """The `n` most similar names, by similarity without case, then with it; none below `cutoff`."""
    matcher = difflib.SequenceMatcher(b=name)
    folded_matcher = difflib.SequenceMatcher(b=name.casefold())
    similarities = {}
    for other in known:
        matcher.set_seq1(other)
        folded_matcher.set_seq1(other.casefold())
        similarities[other] = (folded_matcher.ratio(), matcher.ratio())
    likely = [x for x in known if similarities[x][0] >= cutoff]
    return sorted(likely, key=similarities.__getitem__, reverse=True)[:n]


class ComponentRegistry(Registry):
    """fvcore's Registry, whose error for an unknown name says which name is nearest."""

    def __init__(self, name: str, kind: str) -> None:
        super().__init__(name)
        self.kind = kind

    def get(self, name: str) -> Any:
        """Return the class registered under `name`; KeyError names the nearest one."""
        known = dict(self)
        if name not in known:
            raise KeyError(describe_unknown(self.kind, name, known))
        return known[name]

    def build(self, name: str, args: Mapping[str, Any], **defaults: Any) -> Any:
        """Build the component registered under `name`.

        Args:
            args: constructor arguments, each of which the constructor must know.
            defaults: arguments the caller knows from elsewhere; only those that the constructor takes are passed.

        Raises:
            KeyError: unknown `name`.
            ValueError: an argument the constructor does not have, or a value it refuses.
        """
        cls = self.get(name)
        known = get_constructor_args(cls)
        for key in args:
            if key not in known:
                raise ValueError(describe_unknown(f"argument of {name}", key, known))
        passed = {key: value for key, value in defaults.items() if key in known}
        return cls(**{**passed, **args})


def get_constructor_args(cls: type) -> dict[str, Any]:
    """Name and default of each keyword argument of a component's constructor, in order."""
    parameters = list(inspect.signature(cls.__init__).parameters.values())[1:]
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {p.name: p.default for p in parameters if p.kind in named}


CLS_LOSS_REGISTRY = ComponentRegistry("FOCAL_DET_CLS_LOSS", "classification loss")
NORMALIZER_REGISTRY = ComponentRegistry("FOCAL_DET_NORMALIZER", "loss normalizer")
