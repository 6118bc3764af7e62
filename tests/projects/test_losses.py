"""projects/Losses: its records, the table made of them, and that its program trains and goes on where it was."""

import importlib.util
import json
import re
import shutil
import statistics
import sys
from pathlib import Path

import pytest

from focal_det.experiments.records import get_figures
from tests.conftest import ROOT

FOLDER = ROOT / "projects" / "Losses"
RECORDS = sorted(FOLDER.glob("records/*/*.json"))


def load(file):
    """A script as a module."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = module
    spec.loader.exec_module(module)
    return module


table, program = load(ROOT / "dev" / "render_losses.py"), load(FOLDER / "run.py")


@pytest.mark.parametrize("file", RECORDS, ids=lambda x: f"{x.parent.name}/{x.stem}")
def test_the_figures_of_a_record_come_from_its_metrics(file):
    record = json.loads(file.read_text())
    assert (
        record["figures"] == get_figures(record["metrics"])
        and (ROOT / record["config_file"]).is_file()
    )
    assert (
        re.fullmatch(r"[0-9a-f]{40}", record["commit"]) and record["trained_on"] == file.parent.name
    )
    assert all(
        line["total_loss"] == line["total_loss"]
        for line in record["metrics"]
        if "total_loss" in line
    )  # no NaN


def test_every_loss_has_two_seeds_on_either_data_set():
    for dataset, configs in program.CONFIGS.items():
        for config in configs:
            assert len(list((FOLDER / "records" / dataset).glob(f"{config.stem}_*.json"))) >= 2, (
                f"{dataset} {config.stem}"
            )


def make_record(folder, name, dataset, seed, ap):
    figures = {"bbox/AP": ap, "bbox/AP50": 2 * ap, **{f"bbox/AP-{i}": float(i) for i in range(10)}}
    metrics = [{"iteration": i, "time": 0.1 * (i + 1)} for i in range(8)]
    content = {
        "figures": figures,
        "metrics": metrics,
        "config_file": f"configs/losses/{name}.yaml",
        "trained_on": dataset,
    }
    file = folder / f"{dataset}_{name}_{seed}.json"
    file.write_text(json.dumps(content))
    return file


def test_the_table_has_means_errors_and_marks_what_is_beyond_two(tmp_path):
    aps = {
        "focal_loss": (40.0, 42.0),
        "better_loss": (45.0, 47.0),
        "same_loss": (42.0, 44.0),
        "worse_loss": (20.0, 22.0),
    }
    files = [
        make_record(tmp_path, name, dataset, seed, ap)
        for name, values in aps.items()
        for dataset in table.COLUMNS
        for seed, ap in enumerate(values)
    ]
    lines = table.render_losses(files).splitlines()
    # Each pair has the standard deviation sqrt(2): the error of a mean of two is 1, of a difference sqrt(2).
    assert lines[2].startswith("| `focal_loss` | 41.0 ± 1.0 | 82.0 ± 2.0 |")
    rows = {line.split("`")[1]: line for line in lines[2:]}
    assert "| 46.0 ± 1.0 ▲ |" in rows["better_loss"] and "| 21.0 ± 1.0 ▼ |" in rows["worse_loss"]
    assert "| 43.0 ± 1.0 |" in rows["same_loss"]
    # frequent 0-2, common 3-6, rare 7-9; the lower quartile of 0.1 to 0.8 s.
    assert "| 1.0 ± 0.0 | 4.5 ± 0.0 | 8.0 ± 0.0 | 0.300 | 2 |" in rows["same_loss"]


def test_the_spread_is_pooled_over_groups():
    groups = [[1.0, 3.0], [10.0, 10.0, 16.0], [7.0]]
    want = (statistics.variance(groups[0]) + 2 * statistics.variance(groups[1])) / 3
    assert table.pool_spread(groups) ** 2 == pytest.approx(want)


@pytest.mark.slow
def test_the_program_trains_keeps_records_and_goes_on_where_it_was(tmp_path, monkeypatch, capsys):
    command = program.Run.command.fget
    short = ["SOLVER.MAX_ITER", "20", "SOLVER.STEPS", "(10,)"]
    monkeypatch.setattr(program.Run, "command", property(lambda run: [*command(run), *short]))
    monkeypatch.setattr(
        program, "CONFIGS", {"digits_train": [ROOT / "configs" / "losses" / "ohem_loss.yaml"]}
    )
    monkeypatch.setattr(program, "HERE", tmp_path)
    monkeypatch.setattr(program, "OUTPUT", Path("output", "test_losses"))
    shutil.rmtree(ROOT / "output" / "test_losses", ignore_errors=True)
    monkeypatch.setattr(sys, "argv", ["run.py", "--seeds", "1"])
    assert program.main() == 0
    assert "[1/1] digits_train/ohem_loss_1: done" in capsys.readouterr().out
    record = json.loads((tmp_path / "records" / "digits_train" / "ohem_loss_1.json").read_text())
    assert record["seed"] == 1 and "bbox/AP" in record["figures"]
    assert program.main() == 0
    assert "1 of 1 runs have a record; 0 to go" in capsys.readouterr().out
