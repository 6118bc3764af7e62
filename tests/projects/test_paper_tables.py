"""projects/PaperTables: its results match the rows file, with three seeds each, from a commit."""

import json
import re

import pytest

from focal_det.experiments import sweep_rows
from tests.conftest import ROOT, load_dev

FILES = sorted((ROOT / "projects" / "PaperTables" / "results").glob("digits_*.json"))


def test_recorded_tables_have_json_and_picture():
    assert {x.stem for x in FILES} == {
        f"digits_{table}" for table in ("1a", "1b", "1d", "3", "prior")
    }
    assert all(x.with_suffix(".png").is_file() for x in FILES)


@pytest.mark.parametrize("file", FILES, ids=lambda x: x.stem)
def test_results_match_the_rows_file(file):
    content = json.loads(file.read_text())
    rows = sweep_rows.read_table(content["table"], content["base"])
    assert [(x["row"], x["overrides"], x["paper"]) for x in content["rows"]] == [
        (x.name, x.overrides, x.paper) for x in rows
    ]
    for row in content["rows"]:
        assert [x["seed"] for x in row["runs"]] == [1, 2, 3]
        assert all(
            re.fullmatch(r"[0-9a-f]{40}", x["commit"]) and x["versions"]["torch"]
            for x in row["runs"]
        )


def test_speed_against_accuracy_is_drawn(tmp_path):
    load_dev("draw_speed_accuracy").main(tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000


def test_rows_with_the_same_config_share_their_runs():
    tables = {
        x.stem: {row["row"]: row["runs"] for row in json.loads(x.read_text())["rows"]}
        for x in FILES
    }
    assert (
        tables["digits_1b"]["FL, gamma 0, alpha 0.75"]
        == tables["digits_1a"]["CE, alpha 0.75"]
        == tables["digits_3"]["CE"]
    )
    assert (
        tables["digits_1b"]["FL, gamma 2, alpha 0.25"]
        == tables["digits_1d"]["FL"]
        == tables["digits_3"]["FL, gamma 2"]
    )
