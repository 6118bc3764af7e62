"""Measure the form of the code: `python dev/measure_code.py` prints each measure beside its limit.

Counted over every Python file of `focal_det/`, `dev/` and `projects/`; circles and the size of programs
over `focal_det/`. The exit code is 1 if a limit is passed.
"""

import ast
import io
import json
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAX_COLUMNS = 100
MAX_LINES_OF_FUNCTION = 40
MAX_LINES_OF_PROGRAM = 80
LIMITS = {
    "tuple assignments per 1,000 lines": 3.0,
    "conditional expressions per 1,000 lines": 8.0,
    f"lines over {MAX_COLUMNS} columns": 0,
    f"functions over {MAX_LINES_OF_FUNCTION} lines": 0,
    f"programs over {MAX_LINES_OF_PROGRAM} lines": 0,
    "functions of the checks that take a cfg": 15,
}
MIN_COMMENTS = 4.0  # per 100 lines


def find_files() -> list[Path]:
    folders = ("focal_det", "dev", "projects")
    return sorted(x for folder in folders for x in (ROOT / folder).rglob("*.py"))


def is_tuple_assignment(node: ast.AST) -> bool:
    """Whether several values are assigned to several names in one statement."""
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    return any(isinstance(target, ast.Tuple) for target in node.targets)


def count_comments(text: str) -> int:
    """Comments, those of tools such as noqa aside."""
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    comments = [x.string for x in tokens if x.type == tokenize.COMMENT]
    return sum(not x.startswith(("# noqa", "#!")) for x in comments)


def find_functions(file: Path) -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield f"{file.relative_to(ROOT)}:{node.lineno} {node.name}", node


def takes_cfg(node: ast.FunctionDef) -> bool:
    args = node.args
    return "cfg" in {x.arg for x in (*args.posonlyargs, *args.args, *args.kwonlyargs)}


def count_lines(node: ast.FunctionDef) -> int:
    return node.end_lineno - node.lineno + 1


def measure() -> tuple[dict[str, float], dict[str, list[str]]]:
    """Each measure, and for those that count places, the places."""
    files = find_files()
    texts = {file: file.read_text(encoding="utf-8") for file in files}
    num_lines = sum(len(x.splitlines()) for x in texts.values())
    nodes = [node for text in texts.values() for node in ast.walk(ast.parse(text))]
    functions = [x for file in files for x in find_functions(file)]
    wide = [
        f"{file.relative_to(ROOT)}:{number}"
        for file, text in texts.items()
        for number, line in enumerate(text.splitlines(), start=1)
        if len(line) > MAX_COLUMNS
    ]
    long = [place for place, node in functions if count_lines(node) > MAX_LINES_OF_FUNCTION]
    programs = [
        str(x.relative_to(ROOT))
        for x in (ROOT / "focal_det" / "tools").glob("[!_]*.py")
        if len(texts[x].splitlines()) > MAX_LINES_OF_PROGRAM
    ]
    with_cfg = [
        place
        for place, node in functions
        if place.startswith("focal_det/check/") and takes_cfg(node)
    ]
    per_1000 = 1000 / num_lines
    values = {
        "lines": num_lines,
        "tuple assignments per 1,000 lines": sum(map(is_tuple_assignment, nodes)) * per_1000,
        "conditional expressions per 1,000 lines": sum(isinstance(x, ast.IfExp) for x in nodes)
        * per_1000,
        "comments per 100 lines": sum(map(count_comments, texts.values())) * 100 / num_lines,
    }
    places = dict(zip(list(LIMITS)[2:], (wide, long, programs, with_cfg)))
    return {**values, **{name: len(x) for name, x in places.items()}}, places


def main() -> int:
    values, places = measure()
    is_fine = values["comments per 100 lines"] >= MIN_COMMENTS
    for name, value in values.items():
        limit = LIMITS.get(name)
        is_passed = limit is not None and value > limit
        is_fine &= not is_passed
        bound = f"at most {limit:g}" if limit is not None else ""
        if name == "comments per 100 lines":
            bound = f"at least {MIN_COMMENTS:g}"
        print(f"{name:<42} {value:>9.1f}  {bound}")
        if is_passed:
            for place in places.get(name, [])[:20]:
                print(f"  {place}")
    if len(sys.argv) > 1:
        rounded = {name: round(value, 2) for name, value in values.items()}
        Path(sys.argv[1]).write_text(json.dumps(rounded, indent=1) + "\n", encoding="utf-8")
    return int(not is_fine)


if __name__ == "__main__":
    sys.exit(main())
