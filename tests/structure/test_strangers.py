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

pytestmark = pytest.mark.slow

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


# Run in the clone: each command of a list, in one interpreter.
SCRIPT = """
import contextlib, io, json, sys
import pytest
from focal_det.tools.__main__ import main

run = {"pytest": pytest.main, "focal-det": main, "python": lambda words: exec(words[0], {})}
outcomes = []
for name, *words in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as stream, contextlib.redirect_stderr(stream):
        try:
            code = run[name](words)
        except SystemExit as error:
            code = error.code
    outcomes.append([int(code or 0), stream.getvalue()])
with open(sys.argv[2], "w") as file:
    json.dump(outcomes, file)
"""

ASSIGNER = """
from detectron2.modeling import build_model
from focal_det.env import load_config
print(type(build_model(load_config("digits/center_retinanet_tiny.yaml")).assigner).__name__)
"""


def find_command(start):
    """Words of the one command of the page that starts with some words."""
    (command,) = [x for x in COMMANDS if str(x).startswith(start)]
    return list(command.words)


@pytest.fixture(scope="module")
def outputs(clone, tmp_path_factory):
    """By name, what the programs and the tests of the clone print."""
    train = find_command("focal-det train")
    train[2:2] = ["--no-check"]
    checks = [list(x.words) for x in COMMANDS if x.program == "check"]
    commands = {
        "curves": find_command("focal-det curves"),
        "train": [*train, *FEW_STEPS],
        "check": checks[0],
        "ignoring": checks[1],
        "programs": ["focal-det"],
        "losses": find_command("focal-det losses"),
    }
    commands["assigner"] = ["python", ASSIGNER]
    # After the programs, as conftest.py sets an environment that they must not need.
    commands["contract"] = [*find_command("pytest"), "-m", "not slow"]
    # The copy of losses/ that is left out has nothing that was added.
    commands["layers"] = ["pytest", "tests/structure/test_layering.py", "-k", "not copied_folder"]
    env = {"PYTHONPATH": str(clone), "DETECTRON2_ENV_MODULE": None}
    file = tmp_path_factory.mktemp("outcomes") / "outcomes.json"
    words = json.dumps([*commands.values()])
    _, output = run_python("-c", SCRIPT, words, file, env=env, cwd=clone)
    texts = {}
    for (name, command), (code, text) in zip(commands.items(), json.loads(file.read_text())):
        # A check that finds something exits with 1.
        assert code == 0 or (code == 1 and "check" in command), f"{command}\n{text}\n{output}"
        texts[name] = text
    return texts


def test_each_addition_is_one_file_and_a_config_or_a_case():
    added = sorted(FILES)
    assert len([x for x in added if x.startswith("focal_det/")]) == 4
    assert len([x for x in added if not x.startswith("focal_det/")]) == 2


def test_loss_passes_its_row_of_the_contract(outputs):
    passed = re.search(r"(\d+) passed", outputs["contract"])
    assert passed and int(passed[1]) >= 20
    assert "failed" not in outputs["contract"]


def test_additions_keep_the_layers(outputs):
    assert re.search(r"\d+ passed", outputs["layers"]) and "failed" not in outputs["layers"]


def test_loss_is_found_by_name_and_drawn(clone, outputs):
    assert (clone / "output" / "squared_error.png").stat().st_size > 10_000


def test_assigner_is_selected_by_a_config(clone, outputs):
    folder = clone / "output" / "center"
    written = yaml.safe_load((folder / "config.yaml").read_text())
    assert written["MODEL"]["FOCAL_DET"]["ASSIGNER"]["NAME"] == "CenterAssigner"
    assert outputs["assigner"] == "CenterAssigner\n"
    (metrics,) = [json.loads(x) for x in (folder / "metrics.json").read_text().splitlines()]
    assert metrics["loss_cls"] > 0


def test_check_is_reported_and_ignored_by_its_id(outputs):
    assert "CHK017 short training run" in outputs["check"]
    assert "SOLVER.MAX_ITER 50" in outputs["check"]
    assert "CHK017" not in outputs["ignoring"] and "crashed" not in outputs["ignoring"]
    assert re.search(r"\d+ warnings?", outputs["ignoring"])


def test_program_is_listed_and_runs(outputs):
    summary = "List the registered classification losses with their arguments."
    assert re.search(rf"^  losses +{summary}$", outputs["programs"], re.MULTILINE)
    listed = re.findall(r"^(\w+): ", outputs["losses"], re.MULTILINE)
    assert listed == ["EqualizedFocalLoss", "EqualizedQualityFocalLoss", "GHMCLoss"]
