"""The command `focal-det`: runs the program named by its first argument."""

import ast
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from focal_det.host import require_detectron2
from focal_det.messages import describe_unknown

# In the order in which a person needs them; programs that are not named here come last.
_ORDER = (
    *("check", "train", "reproduce", "report", "demo"),
    *("weights", "sweep", "curves", "loss-cdf", "bench"),
)
_WITHOUT_DETECTRON2 = ("curves",)
_USAGE = """\
usage: focal-det <program> [arguments]
       focal-det <program> --help
       focal-det --version
"""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run `argv[0]` with the rest of `argv`; without arguments, list the programs."""
    words = list(sys.argv[1:] if argv is None else argv)
    programs = _find_programs()
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE)
        for name, summary in programs.items():
            print(f"  {name:<10} {summary}")
        return 0
    if words[0] == "--version":
        for package in ("focal_det", "detectron2", "torch"):
            print(_describe_version(package))
        return 0
    name, *rest = words
    if name not in programs:
        print(describe_unknown("program", name, programs), file=sys.stderr)
        return 2
    try:
        if name not in _WITHOUT_DETECTRON2:
            require_detectron2()
        module = importlib.import_module(f"focal_det.tools.{name.replace('-', '_')}")
    except ImportError as error:  # without Detectron2; the message says how to get it
        print(f"focal-det {name}: {error}", file=sys.stderr)
        return 2
    return module.main(rest)


def _describe_version(package: str) -> str:
    try:
        return f"{package} {importlib.import_module(package).__version__}"
    except ModuleNotFoundError:
        return f"{package} is not installed"


def _find_programs() -> dict[str, str]:
    """Name (with dashes) and first docstring line of each program, without importing it."""
    summaries = {}
    for file in Path(__file__).parent.glob("[!_]*.py"):
        doc = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        summaries[file.stem.replace("_", "-")] = doc.partition("\n")[0]
    names = [x for x in _ORDER if x in summaries]
    names += sorted(summaries.keys() - {*_ORDER})
    return {name: summaries[name] for name in names}


if __name__ == "__main__":
    sys.exit(main())
