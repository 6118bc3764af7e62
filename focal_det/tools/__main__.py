"""The command `focal-det`: runs the program named by its first argument."""

import ast
import importlib
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from focal_det.registry import describe_unknown


def main(argv: Optional[Sequence[str]] = None) -> Optional[int]:
    """Run `argv[0]` with the rest of `argv`; without arguments, list the programs."""
    warnings.filterwarnings(
        "ignore", "`torch.jit"
    )  # fvcore compiles its own losses on import, which current torch warns about
    argv = list(sys.argv[1:] if argv is None else argv)
    tools = _find_tools()
    if not argv or argv[0] in ("-h", "--help"):
        print("usage: focal-det <program> [arguments]\n       focal-det --version\n")
        print("\n".join(f"  {name:<10} {summary}" for name, summary in tools.items()))
        return 0
    if argv[0] == "--version":
        print("\n".join(map(_describe_version, ("focal_det", "detectron2", "torch"))))
        return 0
    if argv[0] not in tools:
        print(describe_unknown("program", argv[0], tools), file=sys.stderr)
        return 2
    try:
        return importlib.import_module(f"focal_det.tools.{argv[0].replace('-', '_')}").main(
            argv[1:]
        )
    except KeyboardInterrupt:
        print(f"\nfocal-det {argv[0]}: interrupted", file=sys.stderr)
        return 130


def _describe_version(package: str) -> str:
    try:
        return f"{package} {importlib.import_module(package).__version__}"
    except ModuleNotFoundError:
        return f"{package} is not installed"


def _find_tools() -> dict[str, str]:
    """Name (with dashes) and first docstring line of each program, without importing it."""
    files = sorted(Path(__file__).parent.glob("[!_]*.py"))
    return {
        file.stem.replace("_", "-"): ast.get_docstring(ast.parse(file.read_text())).splitlines()[0]
        for file in files
    }


if __name__ == "__main__":
    sys.exit(main())
