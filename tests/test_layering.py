"""The spine: a file imports only from its own row or a row above it, and the torch-only row never imports Detectron2."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "focal_det"
ROWS = [
    [
        *["__init__", "registry", "targets", "processes", "transforms", "buffers"],
        *["normalizers", "losses"],
    ],
    ["host", "labeling", "matching", "box_loss", "scripting"],
    ["head"],
    ["data", "analysis"],
    ["meta_arch", "config", "engine"],
    ["env", "model_zoo", "tools"],
]
ROW_OF = {name: row for row, names in enumerate(ROWS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def get_part(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def get_imports(file: Path) -> set[str]:
    """Full names of the modules that a file imports, wherever in the file."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_table_has_every_file():
    assert {get_part(file) for file in FILES} == set(ROW_OF)


@pytest.mark.parametrize("file", FILES, ids=lambda x: str(x.relative_to(PACKAGE)))
def test_imports_go_up(file):
    row = ROW_OF[get_part(file)]
    for name in get_imports(file):
        if name.startswith("focal_det."):
            part = name.split(".")[1]
            assert ROW_OF.get(part, 0) <= row, (
                f"{file} (row {row}) imports {name} (row {ROW_OF[part]})"
            )


@pytest.mark.parametrize(
    "file",
    [f for f in FILES if ROW_OF[get_part(f)] == 0],
    ids=lambda x: str(x.relative_to(PACKAGE)),
)
def test_the_torch_only_row_does_not_know_detectron2(file):
    assert not [x for x in get_imports(file) if x.startswith(("detectron2", "cv2", "pycocotools"))]


@pytest.mark.parametrize("file", FILES, ids=lambda x: str(x.relative_to(PACKAGE)))
def test_detectron2_is_imported_after_the_module_that_says_how_to_get_it(file):
    top = [
        x for x in ast.parse(file.read_text()).body if isinstance(x, (ast.Import, ast.ImportFrom))
    ]
    modules = [x.module if isinstance(x, ast.ImportFrom) else x.names[0].name for x in top]
    first = next((i for i, x in enumerate(modules) if x.split(".")[0] == "detectron2"), None)
    assert first is None or get_part(file) == "host" or "focal_det.host" in modules[:first]
