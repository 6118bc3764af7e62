"""projects/Losses: its rows, its results, and the table made of them."""

import json
import math
import re
import statistics

import pytest

from focal_det.experiments.sweep_rows import read_rows, read_starts
from tests.conftest import ROOT, load_dev

FOLDER = ROOT / "projects" / "Losses"
RESULTS = sorted(FOLDER.glob("results/*.json"))


table = load_dev("render_losses")


def test_every_loss_config_is_a_row_of_both_data_sets():
    tables = read_rows(FOLDER / "rows.json")
    configs = {x.stem for x in (ROOT / "configs" / "losses").glob("*.yaml")} - {"Base-Losses"}
    names = {dataset: {row.name for row in rows} for dataset, rows in tables.items()}
    assert names["digits_train"] == configs
    assert names["digits_longtail_train"] == configs | {"repeat_factor", "per_class_alpha"}


def test_all_rows_start_from_the_same_backbone():
    (start,) = read_starts(FOLDER / "rows.json")
    rows = [row for rows in read_rows(FOLDER / "rows.json").values() for row in rows]
    assert {row.overrides["MODEL.WEIGHTS"] for row in rows} == {str(start.file)}
    assert start.row.name == "focal_retinanet_tiny" and start.row.config.is_file()


@pytest.mark.parametrize("file", RESULTS, ids=lambda x: x.stem)
def test_results_name_their_origin(file):
    content = json.loads(file.read_text())
    assert content["table"] == file.stem
    for run in [run for row in content["rows"] for run in row["runs"]]:
        assert re.fullmatch(r"[0-9a-f]{40}", run["commit"])
        assert (ROOT / run["config_file"]).is_file()
        assert run["versions"]["torch"] and run["threads"] == 1
        assert all(math.isfinite(x) for x in [*run["figures"].values(), run["seconds_per_iter"]])


def write_results(folder, aps):
    """Results of either data set with the APs of each row's runs."""
    files = []
    for dataset in table.COLUMNS:
        rows = []
        for name, values in aps.items():
            rows.append({"row": name, "runs": [make_run(x) for x in values]})
        files.append(folder / f"{dataset}.json")
        files[-1].write_text(json.dumps({"table": dataset, "rows": rows}))
    return files


def make_run(ap):
    figures = {"bbox/AP": ap, "bbox/AP50": 2 * ap, **{f"bbox/AP-{i}": float(i) for i in range(10)}}
    return {"status": "done", "figures": figures, "seconds_per_iter": 0.3}


def test_table_marks_differences_beyond_two_errors(tmp_path):
    aps = {
        "focal_loss": (40.0, 42.0),
        "better_loss": (45.0, 47.0),
        "same_loss": (42.0, 44.0),
        "worse_loss": (20.0, 22.0),
    }
    lines = table.render_losses(write_results(tmp_path, aps)).splitlines()
    # The deviation in each pair is sqrt(2): the error of a mean is 1, of a difference sqrt(2).
    assert lines[2].startswith("| `focal_loss` | 41.0 ± 1.0 | 82.0 ± 2.0 |")
    rows = {line.split("`")[1]: line for line in lines[2:]}
    assert "| 46.0 ± 1.0 ▲ |" in rows["better_loss"]
    assert "| 21.0 ± 1.0 ▼ |" in rows["worse_loss"]
    assert "| 43.0 ± 1.0 |" in rows["same_loss"]
    # frequent 0-2, common 3-6, rare 7-9
    assert "| 1.0 ± 0.0 | 4.5 ± 0.0 | 8.0 ± 0.0 | 0.300 | 2 |" in rows["same_loss"]


def test_loss_without_runs_is_left_out_of_the_table(tmp_path):
    aps = {"focal_loss": (40.0, 42.0), "new_loss": ()}
    files = write_results(tmp_path, aps)
    crashed = json.loads(files[0].read_text())
    crashed["rows"][1]["runs"] = [{"status": "crashed", "error": "no disk"}]
    files[0].write_text(json.dumps(crashed))
    text = table.render_losses(files)
    assert "`focal_loss`" in text and "new_loss" not in text


def test_spread_is_pooled_over_rows():
    groups = [[1.0, 3.0], [10.0, 10.0, 16.0], [7.0]]
    want = (statistics.variance(groups[0]) + 2 * statistics.variance(groups[1])) / 3
    assert table.pool_spread(groups) ** 2 == pytest.approx(want)
