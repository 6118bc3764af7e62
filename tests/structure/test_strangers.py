"""CONTRIBUTING.md: a loss, an assigner, a check and a program, each added by one file and used.

The files are the blocks of the page, written into a copy of the repository.
"""

import json
import re
import shutil

import pytest
import yaml

from tests.conftest import ROOT, run_python

from .pages import CONTRIBUTING, read_blocks, read_commands

COPIED = ("focal_det", "configs", "docs", "tests")
# The one file that a block is added to; all others are new.
EXTENDED = "tests/losses/cases.py"
COMMANDS = [x for of_block in read_commands(CONTRIBUTING) for x in of_block]
FEW_STEPS = (
    *("SOLVER.MAX_ITER", "2", "SOLVER.STEPS", "(1,)", "SOLVER.IMS_PER_BATCH", "2"),
    *("DATASETS.TRAIN", "('digits_val',)", "DATASETS.TEST", "()"),
)


def read_files() -> dict[str, str]:
    """Content of each block that starts with the path of its file."""
    files = {}
    for language in ("python", "yaml"):
        for block in read_blocks(CONTRIBUTING, language):
            path = re.match(r"# ([\w/.]+\.(?:py|yaml))\n", block)
            assert path, block
            files[path[1]] = block[path.end() :]
    return files


FILES = read_files()


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the repository with everything that the page adds."""
    folder = tmp_path_factory.mktemp("clone")
    ignored = shutil.ignore_patterns("__pycache__", "faults", "tools", "records")
    for name in COPIED:
        ignore = ignored if name == "tests" else shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    shutil.copy(ROOT / "pyproject.toml", folder)
    for path, content in FILES.items():
        assert (folder / path).exists() == (path == EXTENDED), path
        with open(folder / path, "a") as stream:
            stream.write(f"\n\n{content}" if path == EXTENDED else content)
    return folder


def run_in(clone, *words, check=True):
    env = {"PYTHONPATH": str(clone), "DETECTRON2_ENV_MODULE": None}
    return run_python("-m", *words, env=env, cwd=clone, check=check)


def run_command(clone, start, *more, check=True):
    """Run the one command of the page that starts with some words."""
    (command,) = [x for x in COMMANDS if str(x).startswith(start)]
    module = "pytest" if command.words[0] == "pytest" else "focal_det.tools"
    return run_in(clone, module, *command.words[1:], *more, check=check)


def test_each_addition_is_one_file_and_a_config_or_a_case():
    added = sorted(FILES)
    assert len([x for x in added if x.startswith("focal_det/")]) == 4
    assert len([x for x in added if not x.startswith("focal_det/")]) == 2


def test_loss_passes_its_row_of_the_contract(clone):
    _, output = run_command(clone, "pytest tests/losses/test_contract.py", "-m", "not slow")
    passed = re.search(r"(\d+) passed", output)
    assert passed and int(passed[1]) >= 20
    assert "failed" not in output


def test_loss_is_found_by_name_and_drawn(clone):
    run_command(clone, "focal-det curves")
    assert (clone / "output" / "squared_error.png").stat().st_size > 10_000


def test_assigner_is_selected_by_a_config(clone):
    (command,) = [x for x in COMMANDS if x.program == "train"]
    run_in(clone, "focal_det.tools", "train", "--no-check", *command.words[2:], *FEW_STEPS)
    folder = clone / "output" / "center"
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert written["MODEL"]["FOCAL_DET"]["ASSIGNER"]["NAME"] == "CenterAssigner"
    code = (
        "from focal_det.env import load_config\n"
        "from detectron2.modeling import build_model\n"
        "model = build_model(load_config('digits/center_retinanet_tiny.yaml'))\n"
        "assert type(model.assigner).__name__ == 'CenterAssigner', model.assigner\n"
    )
    run_python("-c", code, env={"PYTHONPATH": str(clone)}, cwd=clone)
    (metrics,) = [json.loads(x) for x in (folder / "metrics.json").read_text().splitlines()]
    assert metrics["loss_cls"] > 0


def test_check_is_reported_and_ignored_by_its_id(clone):
    base, ignoring = [x for x in COMMANDS if x.program == "check"]
    _, output = run_in(clone, "focal_det.tools", *base.words[1:], check=False)
    assert "CHK901 short training run" in output and "SOLVER.MAX_ITER 50" in output
    _, output = run_in(clone, "focal_det.tools", *ignoring.words[1:], check=False)
    assert "CHK901" not in output and "crashed" not in output
    assert re.search(r"\d+ warnings?", output)


def test_program_is_listed_and_runs(clone):
    _, output = run_in(clone, "focal_det.tools")
    summary = "List the registered classification losses with their arguments."
    assert re.search(rf"^  losses +{summary}$", output, re.MULTILINE)
    _, output = run_command(clone, "focal-det losses")
    listed = re.findall(r"^(\w+): ", output, re.MULTILINE)
    assert listed == ["EqualizedFocalLoss", "GHMCLoss"]


def test_additions_keep_the_layers(clone):
    run_in(clone, "pytest", "tests/structure/test_layering.py")
