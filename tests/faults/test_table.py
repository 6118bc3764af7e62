"""The table of faults: every row that is promised, on every Detectron2, as the tests have it."""

import json

import pytest

from tests.conftest import ROOT, run_forked
from tests.faults.test_data_faults import ROWS

PROMISED = list(range(1, 49))
RECORDS = sorted((ROOT / "tests" / "faults" / "records").glob("*.json"))


@pytest.mark.parametrize("file", RECORDS, ids=lambda x: x.stem)
def test_every_row_has_passed(file):
    rows = {x["row"]: x for x in json.loads(file.read_text())["rows"]}
    assert list(rows) == PROMISED
    for number, (what, *_, stock, ours, _) in ROWS.items():
        assert [rows[number][x] for x in ("fault", "detectron2", "focal_det")] == [
            what,
            stock,
            ours,
        ]


def test_there_are_records_of_the_release_and_of_main():
    assert [x.stem.split("_")[0] for x in RECORDS] == ["0.5", "0.6", "main"]


def test_the_option_prints_rows_and_writes_them(tmp_path):
    words = [
        "-q",
        "tests/faults/test_training_faults.py",
        "-k",
        "row_13",
        "--faults-table",
        str(tmp_path / "t.json"),
    ]
    _, output = run_forked(pytest.main, words, cwd=ROOT)
    (row,) = json.loads((tmp_path / "t.json").read_text())["rows"]
    assert f"| 13 | {row['fault']} | {row['detectron2']} | {row['focal_det']} |" in output
    assert len(row["seen_with_detectron2"]) == 1
