"""The README: short, its tables rendered from records, and the same words as the code."""

import importlib
import json
import re
import sys

import pytest
import yaml
from detectron2 import model_zoo as detectron2_zoo

import focal_det
from focal_det.experiments.records import get_figures
from tests.conftest import ROOT, run_blocks, run_python

from .pages import CONTRIBUTING, PAGES, README, name_of, read_blocks

RECORDS = sorted(ROOT.glob("projects/*/records/*.json"))
KEYS = {
    "figures",
    "dataset",
    "command",
    "config_file",
    "commit",
    "date",
    "device",
    "threads",
    "versions",
    "minutes",
    "config",
    "metrics",
}
# Pages with code that is put into files, and run by other tests.
OWN_FILES = (CONTRIBUTING, ROOT / "docs" / "code.md")


def test_readme_has_at_most_120_lines():
    assert len(README.read_text().splitlines()) <= 120


def test_tables_are_rendered_from_the_records(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "dev")
    monkeypatch.setattr(sys, "argv", ["render_readme.py", "--check"])
    assert importlib.import_module("render_readme").main() == 0


@pytest.mark.parametrize("file", RECORDS, ids=lambda x: x.stem)
def test_figures_of_a_record_come_from_its_metrics(file):
    record = json.loads(file.read_text())
    assert set(record) == KEYS
    assert (ROOT / record["config_file"]).is_file()
    assert record["figures"] == get_figures(record["metrics"])
    assert re.fullmatch(r"[0-9a-f]{40}", record["commit"])


@pytest.mark.parametrize("project", ["Digits", "BloodCells"])
def test_project_has_a_record(project):
    assert [x for x in RECORDS if project in x.parts]


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_and_paths_exist(page):
    text = page.read_text()
    for path, anchor in re.findall(r"\]\((?!http)([^)#]+)(?:#([^)]+))?\)", text):
        target = page.parent / path
        assert target.exists(), path
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text(), re.MULTILINE)
            assert anchor in [x.lower().replace(" ", "-") for x in headings], anchor
    # Old paths are what the changelog is about.
    if page.name != "CHANGELOG.md":
        for path in re.findall(r"`((?:configs|dev|focal_det|tests|projects)/[\w/.-]+)`", text):
            assert (ROOT / path).exists(), path


def test_python_code_runs():
    pages = [x for x in PAGES if x not in OWN_FILES]
    blocks = [code for page in pages for code in read_blocks(page, "python")]
    assert len(blocks) >= 4
    env = {"DETECTRON2_ENV_MODULE": None}
    for block, (code, output) in zip(blocks, run_blocks(*blocks, env=env, cwd=ROOT)):
        assert code == 0, f"{block}\n{output}"


def test_python_code_of_the_readme_is_five_lines():
    (code,) = read_blocks(README, "python")
    assert len([x for x in code.splitlines() if x]) == 5


def test_checkpoint_to_fine_tune_from_is_detectron2s():
    url = detectron2_zoo.get_checkpoint_url("COCO-Detection/retinanet_R_50_FPN_3x.yaml")
    assert url.split("/detectron2/")[1] in (ROOT / "docs" / "train.md").read_text()


def test_programs_are_those_that_focal_det_lists():
    _, output = run_python("-m", "focal_det.tools")
    listed = re.findall(r"^  ([a-z][a-z-]+)  ", output, re.MULTILINE)
    section = README.read_text().split("## Programs\n")[1].split("\n## ")[0]
    assert sorted(re.findall(r"^\| `([a-z-]+)` \|", section, re.MULTILINE)) == sorted(listed)


def test_misspelled_program_is_refused_with_the_nearest():
    code, output = run_python("-m", "focal_det.tools", "trian", check=False)
    assert code == 2 and "Did you mean 'train'" in output


def test_citation_names_the_version_and_the_paper():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == focal_det.__version__
    paper = citation["preferred-citation"]
    assert paper["title"] == "Focal Loss for Dense Object Detection"
    families = [x["family-names"] for x in paper["authors"]]
    assert families == ["Lin", "Goyal", "Girshick", "He", "Dollár"]


def test_changelog_has_the_version():
    changelog = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## (.+)$", changelog, re.MULTILINE)
    assert headings[0] == "Unreleased"
    assert re.fullmatch(rf"{re.escape(focal_det.__version__)} - \d{{4}}-\d\d-\d\d", headings[1])


def test_shares_of_the_loss_are_those_of_the_record():
    content = json.loads((ROOT / "docs" / "overview.json").read_text())
    easiest = {
        x["curve"]: round(100 * (1 - x["share_of_hardest_20_percent"]))
        for x in content["curves"]
        if x["side"] == "negative"
    }
    text = " ".join((ROOT / "docs" / "losses.md").read_text().split())
    assert f"carry {easiest['gamma 0']} % of the loss at" in text
    assert f"(cross entropy), {easiest['gamma 2']} % at" in text
