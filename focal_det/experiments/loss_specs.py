"""Losses written as words, such as "FocalLoss:gamma=2,alpha=0.25"."""

import ast
import re
from typing import Any

import yaml

from focal_det.losses import ClsLoss
from focal_det.registry import CLS_LOSS_REGISTRY

_ARGUMENT = re.compile(r"(?:\[[^\]]*\]|[^,])+")  # up to a comma outside of lists


def parse_loss(spec: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of "NAME:ARGUMENT=VALUE,...".

    A value is a Python literal or else a yaml scalar: 2, -1, 1e-3, [0.25, 0.5], true.

    Raises:
        ValueError: an argument without a value or given twice, or a value of another form.
    """
    name, _, text = spec.partition(":")
    args: dict[str, Any] = {}
    for part in _ARGUMENT.findall(text):
        key, equals, value = (x.strip() for x in part.partition("="))
        if not (key and equals and value):
            raise ValueError(f"arguments are written ARGUMENT=VALUE,..., got {part!r}")
        if key in args:
            raise ValueError(f"argument {key} is given twice")
        args[key] = _parse_value(key, value)
    return name, args


def _parse_value(key: str, value: str) -> Any:
    # Python first: yaml takes 1e-3 for a word.
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError):
        pass
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise ValueError(f"{key} must be a number, a list or a word, got {value!r}") from None


def build_loss(spec: str, num_classes: int) -> ClsLoss:
    """The registered loss of "NAME:ARGUMENT=VALUE,...".

    Raises:
        ValueError: it cannot be parsed or built; the message begins with `spec`.
    """
    try:
        name, args = parse_loss(spec)
        return CLS_LOSS_REGISTRY.build(name, args, num_classes=num_classes)
    except (ValueError, TypeError) as error:
        # A TypeError is what a loss raises for a word in place of a number.
        raise ValueError(f"{spec}: {error}") from None
