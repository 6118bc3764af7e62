"""`focal-det sweep`: rows are what the paper has, what is written is what is trained, and what stopped goes on."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from focal_det.env import load_config
from focal_det.experiments import sweep_rows
from focal_det.experiments.sweep_runs import Run, execute, execute_with_submitit
from focal_det.report.sweep_results import draw_results, make_markdown
from focal_det.tools.sweep import main, make_executor
from tests.conftest import ROOT, run_python
from tests.data.make_data import write_coco
from tests.test_stock_scripts import make_config

TABLES = ("1a", "1b", "1c", "1d", "1e", "2", "3", "prior")
CASES = [
    (table, base) for table in TABLES for base in sweep_rows.BASES if table != "2" or base == "coco"
]
GRID = "SOLVER.BASE_LR=0.001,1e30"


@pytest.fixture(autouse=True)
def blood_cells(monkeypatch, tmp_path):
    monkeypatch.setenv("FOCAL_DET_BCCD", str(tmp_path))  # nothing is read from it here


@pytest.fixture(scope="module")
def data_env(tmp_path_factory):
    """Variables with which processes know a COCO data set of two classes."""
    root = tmp_path_factory.mktemp("data")
    write_coco(root)
    block = {"name": "shapes_train", "format": "coco", "json": "coco.json", "images": "images"}
    (root / "sets.yaml").write_text(yaml.safe_dump({"DATASETS": [block]}))
    return {"FOCAL_DET_DATASETS": str(root / "sets.yaml"), "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize(("table", "base"), CASES)
def test_the_config_that_is_written_is_the_config_of_the_row(table, base, tmp_path):
    base_file = sweep_rows.get_base_file(base)
    options = ["SOLVER.MAX_ITER", "7", "MODEL.RETINANET.PRIOR_PROB", "0.02"]
    cfg = load_config(base_file, options)
    for row in sweep_rows.read_table(table, base):
        file = tmp_path / f"{row.slug}.yaml"
        sweep_rows.write_config(row, base_file, options, file)
        assert load_config(file) == sweep_rows.merge_row(cfg, row)


def test_the_tables_are_the_papers():
    """Best rows and sizes, from the text of the paper."""
    tables = {table: sweep_rows.read_table(table, "coco") for table in TABLES}
    assert [len(x) for x in tables.values()] == [7, 7, 7, 10, 10, 2, 4, 2]
    best = {
        table: max(rows, key=lambda x: x.paper["AP"])
        for table, rows in tables.items()
        if table != "prior"
    }
    aps = {table: row.paper["AP"] for table, row in best.items()}
    assert aps == {"1a": 31.1, "1b": 34.0, "1c": 34.2, "1d": 36.0, "1e": 37.8, "2": 40.8, "3": 34.0}
    assert best["1a"].overrides == {
        "MODEL.RETINANET.FOCAL_LOSS_GAMMA": 0.0,
        "MODEL.RETINANET.FOCAL_LOSS_ALPHA": 0.75,
    }
    assert best["1b"].name == "FL, gamma 2, alpha 0.25" and best["1d"].name == "FL"
    assert best["1e"].overrides["INPUT.MIN_SIZE_TEST"] == 800 and best["1e"].paper["ms"] == 198
    assert best["1e"].overrides["MODEL.WEIGHTS"].endswith("R-101.pkl")


def test_the_base_is_the_papers_setting():
    cfg = load_config(sweep_rows.get_base_file("coco"))
    assert (cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST) == ((600,), 600)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.STEPS, cfg.SOLVER.IMS_PER_BATCH) == (
        90000,
        (60000, 80000),
        16,
    )
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.WEIGHT_DECAY, cfg.SOLVER.MOMENTUM) == (0.01, 0.0001, 0.9)
    assert (
        cfg.MODEL.FOCAL_DET.LOW_QUALITY_MATCHES is False
        and cfg.MODEL.FOCAL_DET.NORMALIZER.NAME == "GlobalPosCount"
    )
    assert (cfg.MODEL.RETINANET.SCORE_THRESH_TEST, cfg.MODEL.RETINANET.NMS_THRESH_TEST) == (
        0.05,
        0.5,
    )
    assert (
        cfg.MODEL.RETINANET.TOPK_CANDIDATES_TEST == 1000 and cfg.INPUT.RANDOM_FLIP == "horizontal"
    )


def test_anchors_are_those_of_the_base_times_powers_of_two():
    rows = {x.name: x.overrides for x in sweep_rows.read_table("1c", "digits")}
    assert rows["2 scales, 1 aspect"]["MODEL.ANCHOR_GENERATOR.SIZES"][1] == [48, 48 * 2**0.5]
    assert rows["1 scale, 3 aspects"]["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"] == [[0.5, 1.0, 2.0]]


def test_a_grid_has_all_combinations():
    base = load_config(sweep_rows.get_base_file("coco"))
    rows = sweep_rows.make_grid(
        ["SOLVER.BASE_LR=0.1,0.2", "MODEL.FOCAL_DET.CLS_LOSS.NAME=FocalLoss,OHEMLoss"], base
    )
    assert [x.name for x in rows][1] == "BASE_LR 0.1, NAME OHEMLoss" and len(rows) == 4
    (row,) = sweep_rows.make_grid(
        ["MODEL.RETINANET.FOCAL_LOSS_GAMMA=2"], base
    )  # a float, as the key is
    assert isinstance(
        row.overrides["MODEL.RETINANET.FOCAL_LOSS_GAMMA"], float
    ) and sweep_rows.merge_row(base, row)
    assert rows[2].overrides == {
        "SOLVER.BASE_LR": 0.2,
        "MODEL.FOCAL_DET.CLS_LOSS.NAME": "FocalLoss",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--table", "1f", "--base", "coco"], "--table: Unknown table '1f'. Did you mean '1"),
        (
            ["--table", "1b", "--base", "digit"],
            "--base: Unknown base 'digit'. Did you mean 'digits'",
        ),
        (["--table", "2", "--base", "digits"], "--table 2 has no row for --base digits"),
        (
            ["--grid", "SOLVER.BASE_LR", "--base", "digits"],
            "--grid takes KEY=value,value..., got 'SOLVER.BASE_LR'",
        ),
        (["--grid", "SOLVER.BASE_LRR=1,2", "--base", "digits"], "Did you mean 'BASE_LR'"),
        (["--table", "1a", "--base", "digits", "--seeds", "0"], "must be >= 1, got 0"),
        (["--table", "1a", "--base", "digits", "SOLVER.MAX_ITER"], "options are KEY VALUE pairs"),
    ],
)
def test_bad_arguments_are_named(words, message, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert message in capsys.readouterr().err


def test_rows_are_written_for_train_net(tmp_path, capsys):
    assert main(["--table", "1b", "3", "--base", "coco", "--write", str(tmp_path)]) == 0
    assert "11 configs" in capsys.readouterr().out
    content = yaml.safe_load((tmp_path / "1b-fl-gamma-0.5-alpha-0.5.yaml").read_text())
    assert (tmp_path / content.pop("_BASE_")).is_file()
    assert content == {"MODEL": {"RETINANET": {"FOCAL_LOSS_GAMMA": 0.5, "FOCAL_LOSS_ALPHA": 0.5}}}


def test_rows_are_trained_what_fails_is_told_and_what_is_done_is_kept(data_env, tmp_path):
    command = [
        "-m",
        "focal_det.tools",
        "sweep",
        "--grid",
        GRID,
        "--base",
        make_config(tmp_path),
        "--jobs",
        "2",
    ]
    _, output = run_python(*command, "--output", tmp_path / "sweep", env=data_env)
    assert (
        "base_lr-0.001, seed 1: done, AP" in output
        and "base_lr-1e-30, seed 1: diverged: Iteration 1: loss_cls is nan" in output
    )
    content = json.loads((tmp_path / "sweep" / "results_grid.json").read_text())
    good, bad = (row["runs"][0] for row in content["rows"])
    assert (
        good["figures"]["bbox/AP"] >= 0
        and good["device"].startswith("CPU, 1 threads")
        and good["seconds_per_iter"] > 0
        and bad["status"] == "diverged"
    )
    assert "| BASE_LR 1e+30 |" in output and "1 diverged |" in output
    assert (tmp_path / "sweep" / "results_grid.png").stat().st_size > 5000
    # Once more: nothing is trained, and the table is the same.
    (table,) = (tmp_path / "sweep").glob("results_grid.md")
    before = table.read_text()
    _, output = run_python(*command, "--output", tmp_path / "sweep", env=data_env)
    assert "2 trainings, 2 of them with a result" in output and table.read_text() == before
    # Other settings do not mix with these.
    code, output = run_python(
        *command, "--output", tmp_path / "sweep", "SOLVER.MAX_ITER", "9", env=data_env, check=False
    )
    assert code != 0 and "holds a run with another SOLVER.MAX_ITER, 4, than" in output


def test_a_result_that_is_being_written_is_not_read(data_env, tmp_path, monkeypatch):
    """The sweep looks at its runs while they end: half a json once stopped it."""
    run, write = (
        Run(tmp_path / "none.yaml", 1, tmp_path / "run", "shapes_train", 4),
        Path.write_text,
    )
    seen = []

    def write_in_two_parts(file, text):
        write(file, text[: len(text) // 2])
        seen.append(run.read_result())
        write(file, text)

    monkeypatch.setattr(Path, "write_text", write_in_two_parts)
    assert execute(run, data_env)["status"] == "crashed" and seen == [{}]
    assert json.loads(run.result_file.read_text())["seed"] == 1 and not list(
        run.folder.glob("*.part")
    )


@pytest.mark.slow
def test_an_interrupted_sweep_that_goes_on_has_the_results_of_one_that_was_not(data_env, tmp_path):
    solver = {
        "IMS_PER_BATCH": 2,
        "MAX_ITER": 60,
        "CHECKPOINT_PERIOD": 10,
        "BASE_LR": 0.01,
        "WARMUP_ITERS": 0,
    }
    config = make_config(tmp_path, SOLVER=solver)
    words = [
        "sweep",
        "--grid",
        "MODEL.RETINANET.FOCAL_LOSS_GAMMA=2.0",
        "--base",
        str(config),
        "--output",
    ]
    _, _ = run_python("-m", "focal_det.tools", *words, tmp_path / "whole", env=data_env)
    command = [sys.executable, "-m", "focal_det.tools", *words, str(tmp_path / "parts")]
    process = subprocess.Popen(
        command,
        env={**os.environ, **data_env},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    folder = tmp_path / "parts" / "runs" / "grid-focal_loss_gamma-2.0_seed1"
    while not (folder / "last_checkpoint").is_file():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 1 and "interrupted; repeat the command to continue" in output
    assert not (folder / "model_final.pth").is_file()
    run_python("-m", "focal_det.tools", *words, tmp_path / "parts", env=data_env)
    assert "drawing the batches of the first" in (folder / "terminal.txt").read_text()
    weights = [
        torch.load(x, weights_only=False)["model"]
        for x in sorted(tmp_path.glob("*/runs/*/model_final.pth"))
    ]
    assert len(weights) == 2 and all(
        torch.equal(weights[0][name], weights[1][name]) for name in weights[0]
    )
    figures = [
        json.loads(x.read_text())["rows"][0]["runs"][0]["figures"]
        for x in sorted(tmp_path.glob("*/results_grid.json"))
    ]
    assert figures[0] == figures[1]


@pytest.mark.slow
def test_with_submitit_each_training_is_a_job(data_env, tmp_path, monkeypatch):
    pytest.importorskip("submitit")
    for key, value in data_env.items():
        monkeypatch.setenv(key, value)
    runs = [
        Run(make_config(tmp_path), 1, tmp_path / "good", "shapes_train", 4),
        Run(tmp_path / "none.yaml", 1, tmp_path / "bad", "shapes_train", 4),
    ]
    executor = make_executor(tmp_path / "jobs", ["timeout_min=10"], cluster="local")
    execute_with_submitit(runs, executor)
    results = [json.loads(x.result_file.read_text()) for x in runs]
    assert [x["status"] for x in results] == ["done", "crashed"] and "none.yaml" in results[1][
        "error"
    ]
    assert runs[0].read_result() and not runs[1].read_result()  # what crashed is tried again


def test_parameters_of_slurm_are_those_of_the_project_page(tmp_path):
    pytest.importorskip("submitit")
    (words,) = re.findall(
        r"--slurm\s+([^`]+)`", (ROOT / "projects" / "PaperTables" / "README.md").read_text()
    )
    parameters = make_executor(tmp_path, words.split(), cluster="local")._executor.parameters
    assert parameters["gpus_per_node"] == 8
    with pytest.raises(SystemExit, match="--slurm takes KEY=VALUE, got 'gpus_per_node'"):
        make_executor(tmp_path, ["gpus_per_node"], cluster="local")


def make_content(*aps_per_row):
    outcomes = [
        [
            {
                "status": "done",
                "dataset": "d",
                "figures": {"bbox/AP": ap, "bbox/AP50": ap, "bbox/AP75": ap},
                "minutes": 1.0,
            }
            for ap in aps
        ]
        for aps in aps_per_row
    ]
    rows = [
        {"row": f"row {i}", "paper": {"AP": 31.1}, "runs": runs} for i, runs in enumerate(outcomes)
    ]
    rows[-1]["runs"].append({"status": "diverged", "error": "FloatingPointError"})
    return {"table": "1a", "base": "digits", "rows": rows}


def test_the_table_has_mean_deviation_and_what_went_wrong(tmp_path):
    content = make_content([10.0, 14.0], [])
    lines = make_markdown(content).splitlines()
    assert (
        lines[2].startswith("| row 0 | 12.0 ± 2.8 |")
        and "| 31.1 |" in lines[2]
        and lines[2].endswith("| 2 |")
    )
    assert lines[3].startswith("| row 1 |  |") and lines[3].endswith("| 1, 1 diverged |")
    draw_results(content, tmp_path / "a.png")
    assert Path(tmp_path / "a.png").stat().st_size > 5000
