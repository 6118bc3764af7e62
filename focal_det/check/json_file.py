"""Reads a COCO JSON; if the file is something else, a finding says what it is."""

import csv
import json
from pathlib import Path
from typing import Any, Optional

from focal_det.messages import shorten

from .data_rules import (
    BYTE_ORDER_MARK,
    COMPRESSED_FILE,
    DAMAGED_JSON,
    DEEPLY_NESTED,
    MISSING_LIST,
    NOT_A_MAPPING,
    NOT_JSON,
    NOT_UTF8,
    OTHER_FILE_FORMAT,
)
from .findings import Findings
from .rules import Rule

_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"PK\x03\x04": "zip"}
_NUM_LOOKED_AT = 5  # lines used to guess the format of a file
_MAX_SHOWN = 40  # characters of an entry
_PARTS = ("images", "categories", "annotations")
_BYTE_ORDER_MARK = "\ufeff"


def read_coco(file: Path, findings: Findings, *, is_train: bool = True) -> Optional[dict[str, Any]]:
    """The content of a COCO JSON; None with a finding if it is damaged or lacks a list.

    Args:
        is_train: whether there must be annotations; those of a test set may be withheld.
    """
    content = _parse(file, findings)
    if content is None:
        return None
    needed = _PARTS if is_train else _PARTS[:2]
    parts = content if isinstance(content, dict) else {}
    missing = [x for x in needed if not isinstance(parts.get(x), list)]
    if missing:
        place = f"{file}: no list under {', '.join(missing)}"
        findings.add(MISSING_LIST, place, needed=", ".join(needed))
        return None
    if not isinstance(content.get("annotations"), list):
        content["annotations"] = []
    for part in _PARTS:
        wrong = [json.dumps(x)[:_MAX_SHOWN] for x in content[part] if not isinstance(x, dict)]
        if wrong:
            findings.add(NOT_A_MAPPING, f"{file}: {shorten(wrong, 3)} under {part}")
            content[part] = [x for x in content[part] if isinstance(x, dict)]
    return content


def _parse(file: Path, findings: Findings) -> Optional[Any]:
    # Before decoding, as compressed bytes may happen to be valid text.
    with file.open("rb") as opened:
        start = opened.read(max(map(len, _COMPRESSED)))
    for signature, kind in _COMPRESSED.items():
        if start.startswith(signature):
            findings.add(COMPRESSED_FILE, f"{file} is {kind}-compressed")
            return None
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        findings.add(NOT_UTF8, f"{file}: {error.reason} (byte {error.start})")
    except json.JSONDecodeError as error:
        rule, place = _explain(error)
        findings.add(rule, f"{file}{place}")
    except RecursionError:
        findings.add(DEEPLY_NESTED, str(file))
    return None


def _explain(error: json.JSONDecodeError) -> tuple[Rule, str]:
    """Why a text does not parse as JSON: the rule it breaks, and the place within the file."""
    kind = _guess_format(error)
    if kind:
        return OTHER_FILE_FORMAT, f" is not JSON, it looks like {kind}"
    length = len(error.doc)
    where = f"line {error.lineno}, column {error.colno} (character {error.pos} of {length})"
    place = f": {error.msg} at {where}"
    if error.doc.startswith(_BYTE_ORDER_MARK):
        return BYTE_ORDER_MARK, place
    if error.doc.strip() and not error.doc.lstrip().startswith(("{", "[")):
        return NOT_JSON, place
    return DAMAGED_JSON, place


def _guess_format(error: json.JSONDecodeError) -> str:
    """The format of a text that does not parse as JSON; empty for damaged JSON or if unknown."""
    lines = error.doc.split("\n", _NUM_LOOKED_AT)[:_NUM_LOOKED_AT]
    lines = [x for x in map(str.strip, lines) if x]
    if not lines:
        return ""
    if lines[0].startswith("<"):
        return "XML or HTML"
    if lines[0].startswith(("{", "[", _BYTE_ORDER_MARK)):
        is_json_lines = error.msg == "Extra data" and lines[0].startswith("{")
        return "JSON Lines" if is_json_lines else ""
    for delimiter in ",;\t":
        num_columns = {len(row) for row in csv.reader(lines, delimiter=delimiter)}
        # The same number of columns in each line, and more than one.
        if len(num_columns) == 1 and num_columns != {1}:
            return "CSV"
    return ""
