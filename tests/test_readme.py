"""The README: its tables come from records whose figures come from their metrics, and its commands and code work."""

import json
import re
import shlex

import pytest
from detectron2 import model_zoo

from focal_det.analysis.record import get_figures
from focal_det.data.digits import build_digits, get_digits_root
from tests.conftest import ROOT, run_python

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
DOCS = "".join((ROOT / "docs" / name).read_text() for name in ("losses.md", "speed.md"))
EXECUTED = (
    "check",
    "weights",
    "curves",
    "sweep",
    "demo",
    "loss-cdf",
    "bench",
)  # programs whose commands are run below
OUR_COMMANDS = [
    shlex.split(line)
    for code in re.findall(r"```sh\n(.*?)```", README + DOCS, re.DOTALL)
    for line in code.replace("\\\n", " ").splitlines()
    if line.startswith(tuple(f"focal-det {x}" for x in EXECUTED)) and "--device cuda" not in line
]
RECORDS = sorted(ROOT.glob("projects/*/records/*.json"))
KEYS = {
    "figures",
    "dataset",
    "command",
    "config_file",
    "commit",
    "date",
    "device",
    "versions",
    "minutes",
    "config",
    "metrics",
}


def test_it_is_short():
    assert len(README.splitlines()) <= 290


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
    for page in (ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("projects/*/README.md")):
        for path in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text()):
            assert (page.parent / path).exists(), f"{page}: {path}"
    for path in re.findall(r"`((?:configs|dev|focal_det|tests|projects)/[\w/.-]+)`", README):
        assert (ROOT / path).exists(), path


def test_its_python_code_runs():
    for language, code in BLOCKS:
        if language == "python":
            run_python("-c", code, env={"DETECTRON2_ENV_MODULE": None})


def test_its_commands_are_those_of_the_makefile_and_the_programs():
    commands = [
        x
        for language, code in BLOCKS
        if language == "sh"
        for x in code.replace("\\\n", " ").splitlines()
    ]
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands:
        words = [x for x in shlex.split(command) if not re.match(r"[A-Z_]+=", x)]
        if words[0] == "make":
            assert words[1] in targets
        elif words in OUR_COMMANDS:
            assert words[1] in EXECUTED
        elif "--config-file" in words:
            check_overrides(words)
        else:
            assert command == "pip install ."
    assert len(commands) == 12


def commands_of(program):
    words = [x for x in OUR_COMMANDS if x[1] == program]
    assert words
    return pytest.mark.parametrize("words", words, ids=lambda x: " ".join(x[2:])[:40])


def run_command(words, *more):
    return run_python("-m", "focal_det.tools", *words[1:], *more, cwd=ROOT)[1]


def move_output(words, folder):
    """The words of a command with its files under `folder` in place of output/."""
    return [
        str(folder / x.removeprefix("output/")) if x.startswith("output/") else x for x in words
    ]


@commands_of("check")
def test_its_check_finds_nothing_wrong(words, tmp_path):
    assert "no errors, no warnings" in run_command(move_output(words, tmp_path))
    assert {x.name for x in (tmp_path / "check").iterdir()} == {
        "index.html",
        "images.png",
        "anchors.png",
        "classes.png",
    }
    assert "alpha_per_class" in (tmp_path / "anchors.yaml").read_text()


@commands_of("curves")
def test_its_curves_are_drawn(words, tmp_path):
    run_command(words[:-1], tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 10_000


@commands_of("weights")
@pytest.mark.slow
def test_its_weights_are_written(words, tmp_path):
    output = run_command(move_output(words, tmp_path))
    assert "weights.png" in output and "alpha_per_class" in (tmp_path / "weights.yaml").read_text()


@commands_of("demo")
@pytest.mark.slow
def test_its_pictures_are_drawn(words, tmp_path):
    build_digits("val")
    folder = get_digits_root() / "val" / "images"
    assert words[-1].endswith("/".join(folder.parts[-3:]))
    output = run_command([*words[:-1], str(folder)], "--output", tmp_path)
    assert "by class: " in output and len(list(tmp_path.rglob("*.png"))) == len(
        list(folder.iterdir())
    )


@commands_of("loss-cdf")
@pytest.mark.slow
def test_its_cumulative_loss_is_drawn(words, tmp_path):
    output = run_command(words, "--write", tmp_path / "cdf.png")
    assert "gamma 2: of " in output and (tmp_path / "cdf.png").stat().st_size > 10_000


@commands_of("sweep")
@pytest.mark.slow
def test_its_sweeps_come_to_their_tables(words, tmp_path):
    """As they are, but for the number of iterations."""
    output = run_command(
        words,
        "--output",
        tmp_path,
        "SOLVER.MAX_ITER",
        "2",
        "SOLVER.STEPS",
        "(1,)",
        "DATASETS.TRAIN",
        "('digits_val',)",
    )
    (results,) = tmp_path.glob("results_*.md")
    assert len(results.read_text().splitlines()) == 2 + 4 and "crashed" not in output
    assert output.count(": done, AP") + output.count(": no detections, AP") == 4


@commands_of("bench")
@pytest.mark.slow
def test_its_benchmarks_run(words):
    assert "focal_det" in run_command(words)


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
