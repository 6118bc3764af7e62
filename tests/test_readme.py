"""The README: its tables come from records whose figures come from their metrics, and its commands and code work."""

import json
import re
import shlex

import pytest
from detectron2 import model_zoo

from focal_det.analysis.record import get_figures
from tests.conftest import ROOT, run_python

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
DOCS = (ROOT / "docs" / "losses.md").read_text()
OUR_COMMANDS = [
    shlex.split(line)
    for code in re.findall(r"```sh\n(.*?)```", README + DOCS, re.DOTALL)
    for line in code.replace("\\\n", " ").splitlines()
    if line.startswith(("focal-det weights", "focal-det curves"))
]
RECORDS = sorted(ROOT.glob("projects/*/records/*.json"))
KEYS = {"figures", "dataset", "command", "config_file", "commit", "date", "device", "versions", "minutes", "config", "metrics"}


def test_it_is_short():
    assert len(README.splitlines()) <= 200


def test_its_tables_are_rendered_from_the_records():
    run_python("dev/render_readme.py", "--check", cwd=ROOT)


@pytest.mark.parametrize("file", RECORDS, ids=lambda x: x.stem)
def test_the_figures_of_a_record_come_from_its_metrics(file):
    record = json.loads(file.read_text())
    assert set(record) == KEYS and (ROOT / record["config_file"]).is_file()
    assert record["figures"] == get_figures(record["metrics"])
    assert re.fullmatch(r"[0-9a-f]{40}", record["commit"])


@pytest.mark.parametrize("project", ["Digits", "BloodCells"])
def test_the_project_has_a_record(project):
    assert [x for x in RECORDS if project in x.parts]


def test_its_links_and_paths_exist():
    for page in (ROOT / "README.md", ROOT / "docs" / "losses.md", *ROOT.glob("projects/*/README.md")):
        for path in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / path).exists(), f"{page}: {path}"
    for path in re.findall(r"`((?:configs|dev|focal_det|tests|projects)/[\w/.-]+)`", README):
        assert (ROOT / path).exists(), path


def test_its_python_code_runs():
    for language, code in BLOCKS:
        if language == "python":
            run_python("-c", code, env={"DETECTRON2_ENV_MODULE": None})


def test_its_commands_are_those_of_the_makefile_and_the_programs():
    commands = [x for language, code in BLOCKS if language == "sh" for x in code.replace("\\\n", " ").splitlines()]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands:
        words = [x for x in shlex.split(command) if not re.match(r"[A-Z_]+=", x)]
        if words[0] == "make":
            assert words[1] in targets
        elif words[:2] in (["focal-det", "weights"], ["focal-det", "curves"]):
            assert words[1:] in [x[1:] for x in OUR_COMMANDS]  # run below
        elif "--config-file" in words:
            check_overrides(words)
        else:
            assert command == "pip install ."
    assert len(commands) == 7


@pytest.mark.parametrize("words", [x for x in OUR_COMMANDS if x[1] == "curves"], ids=lambda x: x[-1])
def test_its_curves_are_drawn(words, tmp_path):
    run_python("-m", "focal_det.tools", *words[1:-1], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize("words", [x for x in OUR_COMMANDS if x[1] == "weights"], ids=lambda x: x[-1])
def test_its_weights_are_written(words, tmp_path):
    words = [str(tmp_path / "w.yaml") if x == "output/weights.yaml" else x for x in words]
    _, output = run_python("-m", "focal_det.tools", *words[1:], cwd=ROOT)
    assert "w.png" in output and "alpha_per_class" in (tmp_path / "w.yaml").read_text()


def check_overrides(words):
    """The config exists and takes the keys and values of the command."""
    from detectron2.config import get_cfg

    cfg = get_cfg()
    start = words.index("--config-file") + 1
    cfg.merge_from_file(str(ROOT / words[start]), allow_unsafe=False)
    options = words[start + 1 :]
    cfg.merge_from_list(options[2:] if options[:1] == ["--num-gpus"] else options)


def test_the_checkpoint_to_fine_tune_from_is_detectron2s():
    url = model_zoo.get_checkpoint_url("COCO-Detection/retinanet_R_50_FPN_3x.yaml")
    assert url.split("/detectron2/")[1] in README


def test_the_program_lists_its_programs():
    _, output = run_python("-m", "focal_det.tools")
    assert "train" in output and "report" in output
    code, output = run_python("-m", "focal_det.tools", "trian", check=False)
    assert code == 2 and "Did you mean 'train'" in output
