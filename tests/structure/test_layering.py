"""The house: the table in docs/code.md, enforced row by row."""

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "focal_det"
FILES = sorted(PACKAGE.rglob("*.py"))
# What each row may import besides the rows above; the package's own modules aside.
HEAVY = ("detectron2", "matplotlib", "cv2", "pycocotools", "fvcore", "torchvision", "argparse")
MAY_IMPORT = {
    **dict.fromkeys(("messages", "files"), ()),
    "registry": ("fvcore",),
    "slurm": (),
    "losses": (),
}
MAX_LINES_OF_A_PROGRAM = 80


def read_rows() -> dict[str, int]:
    """The row of each part, as docs/code.md has it."""
    rows = {}
    for number, parts in re.findall(
        r"^\| (\d+) \| (.+?) \|", (ROOT / "docs/code.md").read_text(), re.M
    ):
        for name in re.findall(r"`([\w/.]+)`", parts):
            rows[name.removesuffix("/").removesuffix(".py")] = int(number)
    return rows


ROWS = read_rows()


def get_part(file: Path) -> str:
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def name_of(file: Path) -> str:
    return str(file.relative_to(PACKAGE))


def find_imports(file: Path, *, top_level: bool = False) -> set[str]:
    """Full names of the modules that a file imports, anywhere in it or at its top level."""
    tree = ast.parse(file.read_text())
    package = ["focal_det", *file.relative_to(PACKAGE).parts[:-1]]
    names = set()
    for node in tree.body if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            prefix = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*prefix, *([node.module] if node.module else [])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return names


def test_table_has_every_part():
    assert {get_part(file) for file in FILES} == {*ROWS, "__init__"}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_imports_come_from_rows_above(file):
    part = get_part(file)
    for name in find_imports(file):
        other = name.split(".")[1] if name.startswith("focal_det.") else None
        if other in ROWS and other != part:
            assert ROWS[other] < ROWS.get(part, 99), f"{name_of(file)} imports {name}"


@pytest.mark.parametrize("part", sorted(ROWS))
def test_part_has_no_circles(part):
    files = [file for file in FILES if get_part(file) == part]
    modules = {
        ".".join(["focal_det", *x.relative_to(PACKAGE).with_suffix("").parts]): x for x in files
    }
    left = {name: find_imports(file) & {*modules} - {name} for name, file in modules.items()}
    while free := [name for name, needed in left.items() if not needed & {*left}]:
        for name in free:
            del left[name]
    assert not left


@pytest.mark.parametrize("file", [x for x in FILES if get_part(x) in MAY_IMPORT], ids=name_of)
def test_light_rows_stay_light(file):
    allowed = MAY_IMPORT[get_part(file)]
    found = {x.split(".")[0] for x in find_imports(file, top_level=True)}
    assert not found & {*HEAVY} - {*allowed}


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_only_reports_import_matplotlib(file):
    if get_part(file) not in ("report", "tools"):
        assert not [x for x in find_imports(file) if x.split(".")[0] == "matplotlib"]


@pytest.mark.parametrize(
    "file", [x for x in FILES if get_part(x) not in ("modeling", "config")], ids=name_of
)
def test_detector_nodes_are_spelled_in_two_places(file):
    lines = file.read_text().splitlines()
    found = [x for x in lines if re.search(r"MODEL\.(RETINANET|ROI_HEADS)\b", x)]
    assert not [x for x in found if "focal-det sweep --grid" not in x]


def test_losses_work_as_a_copied_folder(tmp_path):
    """Torch alone, and no other file of focal_det."""
    import shutil

    from tests.conftest import run_python

    shutil.copytree(PACKAGE / "losses", tmp_path / "my_losses")
    code = (
        "import sys\n"
        "for name in ('detectron2', 'fvcore', 'torchvision', 'focal_det'):\n"
        "    sys.modules[name] = None\n"
        "import torch, my_losses, my_losses.normalizers\n"
        "loss = my_losses.sigmoid_focal_loss(torch.zeros(1), torch.ones(1))\n"
        "assert abs(loss.item() - 0.1733) < 1e-3\n"
    )
    run_python("-c", code, env={"DETECTRON2_ENV_MODULE": None}, cwd=tmp_path)
