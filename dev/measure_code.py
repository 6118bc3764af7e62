"""Measure the form of the code: statements, lines, comments, functions and import circles.

python dev/measure_code.py [RECORD.json]

Prints each measure beside its limit, with the places that are at fault, and exits with 1 if a limit
is passed. Counts the Python files of `focal_det/`, `dev/` and `projects/`.
"""

import argparse
import ast
import io
import json
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from functools import cached_property
from pathlib import Path
from typing import Optional, Union

ROOT = Path(__file__).parents[1]
FOLDERS = ("focal_det", "dev", "projects")
MAX_COLUMNS = 100
MAX_LINES_OF_FILE = 400
MAX_LINES_OF_FUNCTION = 40
MAX_LINES_OF_PROGRAM = 80
# Comments that speak to a tool and not to a reader.
TOOL_COMMENTS = ("#!", "# noqa", "# type:", "# fmt:", "# pragma:", "# ruff:", "# isort:")
MAX_SHOWN = 20  # places listed per measure

Function = Union[ast.FunctionDef, ast.AsyncFunctionDef]
FUNCTION_TYPES = (ast.FunctionDef, ast.AsyncFunctionDef)


@dataclass(frozen=True)
class Source:
    """A Python file.

    Attributes:
        path: relative to the checkout, with forward slashes.
    """

    path: str
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def functions(self) -> list[Function]:
        return [x for x in ast.walk(self.tree) if isinstance(x, FUNCTION_TYPES)]

    @property
    def module(self) -> str:
        """Full name for the import statement."""
        return self.path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")

    @property
    def package(self) -> str:
        """Full name of the package that relative imports start at."""
        if self.path.endswith("/__init__.py"):
            return self.module
        return self.module.rpartition(".")[0]


@dataclass(frozen=True)
class Measure:
    """A figure and its limits.

    Attributes:
        places: where the code is at fault, for figures that count places.
    """

    name: str
    value: float
    most: Optional[float] = None
    least: Optional[float] = None
    places: Sequence[str] = ()

    @property
    def is_fine(self) -> bool:
        if self.most is not None and self.value > self.most:
            return False
        return self.least is None or self.value >= self.least

    def __str__(self) -> str:
        bound = ""
        if self.most is not None:
            bound = f"at most {self.most:g}"
        if self.least is not None:
            bound = f"at least {self.least:g}"
        return f"{self.name:<42} {self.value:>9.1f}  {bound}".rstrip()


def read_sources(root: Path) -> list[Source]:
    """Read the files to measure, in order of their paths."""
    files = sorted(file for folder in FOLDERS for file in (root / folder).rglob("*.py"))
    return [Source(x.relative_to(root).as_posix(), x.read_text(encoding="utf-8")) for x in files]


def is_tuple_assignment(node: ast.AST) -> bool:
    """Whether one statement assigns several written-out values to several names.

    `a, b = x, y` does; `a, b = f()`, which unpacks one value, and `pair = x, y` do not.
    """
    if not isinstance(node, ast.Assign) or not isinstance(node.value, (ast.Tuple, ast.List)):
        return False
    return any(isinstance(target, (ast.Tuple, ast.List)) for target in node.targets)


def count_nodes(sources: Sequence[Source]) -> tuple[int, int]:
    """Number of tuple assignments, and of conditional expressions."""
    nodes = [node for source in sources for node in ast.walk(source.tree)]
    num_conditional = sum(isinstance(node, ast.IfExp) for node in nodes)
    return sum(map(is_tuple_assignment, nodes)), num_conditional


def count_comments(source: Source) -> int:
    """Number of comments for readers; a `#` in a string is none."""
    tokens = tokenize.generate_tokens(io.StringIO(source.text).readline)
    comments = [x.string for x in tokens if x.type == tokenize.COMMENT]
    return sum(not x.startswith(TOOL_COMMENTS) for x in comments)


def find_wide_lines(sources: Sequence[Source]) -> list[str]:
    return [
        f"{source.path}:{number}"
        for source in sources
        for number, line in enumerate(source.lines, start=1)
        if len(line) > MAX_COLUMNS
    ]


def find_long_functions(sources: Sequence[Source]) -> list[str]:
    """Functions that are too long, from `def` to the last line, docstring included."""
    found = []
    for source in sources:
        for node in source.functions:
            num_lines = node.end_lineno - node.lineno + 1
            if num_lines > MAX_LINES_OF_FUNCTION:
                found.append(f"{source.path}:{node.lineno} {node.name} ({num_lines})")
    return found


def find_long_files(sources: Sequence[Source], most: int) -> list[str]:
    return [f"{x.path} ({len(x.lines)})" for x in sources if len(x.lines) > most]


def is_program(source: Source) -> bool:
    """Whether it is one of the programs; the parts they share begin with an underscore."""
    folder, _, name = source.path.rpartition("/")
    return folder == "focal_det/tools" and not name.startswith("_")


def takes_cfg(node: Function) -> bool:
    """Whether an argument is a config, by its name or its type."""
    args = (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
    for arg in args:
        # Under another name, it is still a config.
        annotation = ast.unparse(arg.annotation) if arg.annotation else ""
        if arg.arg == "cfg" or "CfgNode" in annotation:
            return True
    return False


def find_cfg_functions(sources: Sequence[Source]) -> list[str]:
    """Functions of the checks that are handed a whole config."""
    return [
        f"{source.path}:{node.lineno} {node.name}"
        for source in sources
        if source.path.startswith("focal_det/check/")
        for node in source.functions
        if takes_cfg(node)
    ]


def find_imports(source: Source, modules: set[str]) -> Iterator[str]:
    """Those of `modules` that a file imports, at its top or in a function."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        if not isinstance(node, ast.ImportFrom):
            continue
        name = node.module or ""
        if node.level:
            # One dot is the file's own package, each further one the package around it.
            parts = source.package.split(".")
            parents = parts[: len(parts) - node.level + 1]
            name = ".".join([*parents, *filter(None, [node.module])])
        for alias in node.names:
            # What is imported from a package may be a module or a name of its __init__.
            submodule = f"{name}.{alias.name}"
            if submodule in modules:
                yield submodule
            elif name in modules:
                yield name


def find_circles(sources: Sequence[Source]) -> list[str]:
    """Groups of modules of `focal_det` that import each other, directly or through others."""
    sources = [x for x in sources if x.path.startswith("focal_det/")]
    modules = {x.module for x in sources}
    # Starts as what each module imports, and grows to all that it reaches through others.
    reached = {x.module: {*find_imports(x, modules)} - {x.module} for x in sources}
    is_growing = True
    while is_growing:
        is_growing = False
        for name, others in reached.items():
            further = set().union(*(reached[x] for x in others))
            if not further <= others:
                reached[name] = others | further
                is_growing = True
    circles = set()
    for name, others in reached.items():
        # In a circle, a module reaches itself, and so is a member, too.
        members = sorted(x for x in others if name in reached[x])
        if members:
            circles.add(" <-> ".join(members))
    return sorted(circles)


def count_places(name: str, places: Sequence[str], most: int = 0) -> Measure:
    return Measure(name, len(places), most=most, places=places)


def measure(sources: Sequence[Source]) -> list[Measure]:
    """Measure all sources, in the order in which the figures are printed."""
    num_lines = sum(len(x.lines) for x in sources)
    num_tuples, num_conditional = count_nodes(sources)
    num_comments = sum(map(count_comments, sources))
    programs = [x for x in sources if is_program(x)]
    long_files = find_long_files(sources, MAX_LINES_OF_FILE)
    long_functions = find_long_functions(sources)
    long_programs = find_long_files(programs, MAX_LINES_OF_PROGRAM)
    per_1000 = 1000 / num_lines
    return [
        Measure("lines", num_lines),
        Measure("tuple assignments per 1,000 lines", num_tuples * per_1000, most=3),
        Measure("conditional expressions per 1,000 lines", num_conditional * per_1000, most=8),
        Measure("comments per 100 lines", num_comments * 100 / num_lines, least=4),
        count_places(f"lines over {MAX_COLUMNS} columns", find_wide_lines(sources)),
        count_places(f"files over {MAX_LINES_OF_FILE} lines", long_files),
        count_places(f"functions over {MAX_LINES_OF_FUNCTION} lines", long_functions),
        count_places(f"programs over {MAX_LINES_OF_PROGRAM} lines", long_programs),
        count_places("functions of the checks that take a cfg", find_cfg_functions(sources), 15),
        count_places("import circles", find_circles(sources)),
    ]


def write_record(file: Path, measures: Sequence[Measure]) -> None:
    """Write the figures with the commit they are of."""
    # Imported here, as nothing else of this script needs Detectron2.
    from focal_det.experiments.records import get_commit

    record = {
        "command": f"python dev/measure_code.py {file}",
        "commit": get_commit(),
        "date": date.today().isoformat(),
        "figures": {x.name: round(x.value, 2) for x in measures},
    }
    file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the script; returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("record", nargs="?", type=Path, help="json file to write the figures to")
    options = parser.parse_args(arguments)
    measures = measure(read_sources(ROOT))
    for found in measures:
        print(found)
        # The places of a measure within its limits are nobody's concern.
        if not found.is_fine:
            for place in found.places[:MAX_SHOWN]:
                print(f"  {place}")
    if options.record:
        write_record(options.record, measures)
    return int(not all(x.is_fine for x in measures))


if __name__ == "__main__":
    sys.exit(main())
