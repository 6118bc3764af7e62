"""`focal-det sweep`: its rows, the configs it writes, its runs and its results."""

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

from focal_det.config import get_config_file
from focal_det.env import load_config
from focal_det.experiments import sweep_rows
from focal_det.experiments.sweep_launch import execute_with_submitit
from focal_det.experiments.sweep_runs import Run, execute
from focal_det.report.sweep_results import make_results_figure, make_results_table
from focal_det.slurm import make_executor
from focal_det.tools.sweep import main
from tests.conftest import ROOT, run_program, run_python
from tests.data.make_data import write_coco
from tests.test_stock_scripts import make_config

TABLES = ("1a", "1b", "1c", "1d", "1e", "2", "3", "prior")
# All rows on one base; on the others, a table each of keys, anchors and image sizes.
CASES = [(table, "coco") for table in TABLES]
CASES += [(table, base) for base in ("digits", "bccd") for table in ("3", "1c", "1e")]


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


@pytest.fixture(autouse=True)
def sigterm():
    """The handler of this process, which a sweep replaces."""
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


def get_error(capsys, *argv):
    with pytest.raises(SystemExit) as error:
        main([*map(str, argv)])
    assert error.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(("table", "base"), CASES)
def test_written_config_equals_that_of_the_row(table, base, tmp_path):
    options = ["SOLVER.MAX_ITER", "7", "MODEL.RETINANET.PRIOR_PROB", "0.02"]
    for row, cfg in sweep_rows.load_rows(sweep_rows.read_table(table, base), options).items():
        file = tmp_path / f"{row.slug}.yaml"
        sweep_rows.write_row(row, options, file)
        assert load_config(file) == cfg


def test_tables_have_the_papers_rows_and_figures():
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


def test_coco_base_is_the_papers_setting():
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


def test_anchors_multiply_the_sizes_of_the_base():
    rows = {x.name: x.overrides for x in sweep_rows.read_table("1c", "digits")}
    assert rows["2 scales, 1 aspect"]["MODEL.ANCHOR_GENERATOR.SIZES"][1] == [48, 48 * 2**0.5]
    assert rows["1 scale, 3 aspects"]["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"] == [[0.5, 1.0, 2.0]]


def test_grid_has_all_combinations():
    base = sweep_rows.get_base_file("coco")
    words = ["SOLVER.BASE_LR=0.1,0.2", "MODEL.FOCAL_DET.CLS_LOSS.NAME=FocalLoss,OHEMLoss"]
    rows = sweep_rows.make_grid(words, base)
    assert len(rows) == 4 and rows[1].name == "BASE_LR 0.1, NAME OHEMLoss"
    overrides = {"SOLVER.BASE_LR": 0.2, "MODEL.FOCAL_DET.CLS_LOSS.NAME": "FocalLoss"}
    assert rows[2].overrides == overrides


@pytest.mark.parametrize(
    ("values", "parsed"),
    [
        ("(100,200),(300,)", [(100, 200), (300,)]),
        ("[[8],[16]],[[32]]", [[[8], [16]], [[32]]]),
        ("giou,smooth_l1", ["giou", "smooth_l1"]),
        ("cpu", ["cpu"]),
        ("True,None", [True, None]),
    ],
)
def test_grid_splits_values_outside_of_brackets(values, parsed):
    base = sweep_rows.get_base_file("digits")
    rows = sweep_rows.make_grid([f"SOLVER.STEPS={values}"], base)
    assert [x.overrides["SOLVER.STEPS"] for x in rows] == parsed


def test_grid_keeps_signs_apart():
    base = sweep_rows.get_base_file("digits")
    rows = sweep_rows.make_grid(["MODEL.RETINANET.FOCAL_LOSS_ALPHA=-1,1"], base)
    assert len({x.slug for x in rows}) == 2
    assert len(sweep_rows.load_rows(rows, ())) == 2


def test_grid_reads_whole_numbers_for_float_keys():
    base = sweep_rows.get_base_file("coco")
    (row,) = sweep_rows.make_grid(["MODEL.RETINANET.FOCAL_LOSS_GAMMA=2"], base)
    assert isinstance(row.overrides["MODEL.RETINANET.FOCAL_LOSS_GAMMA"], float)
    assert sweep_rows.load_rows([row], ())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--table", "1f", "--base", "coco"], "--table: Unknown table '1f'. Did you mean '1"),
        (["--table", "1b", "--base", "digit"], "--base: Unknown base 'digit'. Did you mean 'digit"),
        (["--table", "2", "--base", "digits"], "--table 2 has no row for --base digits"),
        (["--table", "1b"], "--base is required: coco, digits, bccd"),
        (["--grid", "SOLVER.BASE_LR", "--base", "digits"], "KEY=value,value..., got 'SOLVER.BASE_"),
        (["--grid", "SOLVER.BASE_LRR=1,2", "--base", "digits"], "Did you mean 'BASE_LR'"),
        (["--table", "1a", "--base", "digits", "--seeds", "0"], "--seeds must be >= 1, got 0"),
        (["--table", "1a", "--base", "digits", "--jobs", "0"], "--jobs must be >= 1, got 0"),
        (["--table", "1a", "--base", "digits", "SOLVER.MAX_ITER"], "options are KEY VALUE pairs"),
        (["--rows", "nowhere.json"], "nowhere.json"),
        ([], "either --table, --rows or --grid is required"),
        (
            ["--grid", "SEED=1,2", "--table", "1a", "--base", "digits"],
            "either --table, --rows or --grid",
        ),
    ],
)
def test_bad_arguments_are_named(words, message, capsys):
    assert message in get_error(capsys, *words)


def write_rows(folder, rows, **others):
    file = folder / "rows.json"
    file.write_text(json.dumps({"rows": rows, **others}))
    return file


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"row": "a"}, "'table' is missing"),
        ({"table": "t"}, "a row needs either 'row' (its name) or 'config'"),
        ({"table": "t", "row": "a", "sett": {}}, "Unknown key 'sett'. Did you mean 'set'"),
        ({"table": "t", "row": "a"}, "--base is required"),
        (
            {"table": "t", "row": "a", "config": "config.yaml", "anchors": [1, 2]},
            "row 'a': anchors must be one of [1, 1], [1, 3], ",
        ),
        (
            {"table": "t", "row": "a", "config": "config.yaml", "anchors": 3},
            "[4, 3]; got 3",
        ),
        (7, "an entry must be an object with keys, got 7"),
        ({"table": "t", "config": "no*.yaml"}, "matches 'no*.yaml'"),
    ],
)
def test_bad_rows_are_named(row, message, tmp_path, capsys):
    make_config(tmp_path)
    assert message in get_error(capsys, "--rows", write_rows(tmp_path, [row]))


def test_base_is_refused_for_rows_with_configs(tmp_path, capsys):
    file = write_rows(tmp_path, [{"table": "t", "config": "a.yaml"}])
    assert "leave out --base" in get_error(capsys, "--rows", file, "--base", "digits")


@pytest.mark.parametrize(
    ("start", "message"),
    [
        ({"file": "a.pth"}, "'keep' is missing"),
        ({"file": "a.pth", "keep": "backbone."}, "'train' is missing"),
    ],
)
def test_bad_start_weights_are_named(start, message, tmp_path, capsys):
    make_config(tmp_path)
    rows = [{"table": "t", "config": "config.yaml"}]
    assert message in get_error(capsys, "--rows", write_rows(tmp_path, rows, start=[start]))


def test_pattern_stands_for_a_row_per_config(tmp_path):
    for name in ("b_loss", "a_loss", "base"):
        make_config(tmp_path).rename(tmp_path / f"{name}.yaml")
    rows = [{"table": "t", "config": "*_loss.yaml", "set": {"SEED": 7}}]
    tables = sweep_rows.read_rows(write_rows(tmp_path, rows))
    assert [(x.name, x.config.name) for x in tables["t"]] == [
        ("a_loss", "a_loss.yaml"),
        ("b_loss", "b_loss.yaml"),
    ]
    assert [x.SEED for x in sweep_rows.load_rows(tables["t"], ()).values()] == [7, 7]


def test_config_of_a_row_may_have_its_full_path(tmp_path):
    config = make_config(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    rows = [{"table": "t", "config": str(config)}]
    file = write_rows(tmp_path / "elsewhere", rows)
    assert [row.config for row in sweep_rows.read_rows(file)["t"]] == [config]


def test_tables_of_a_rows_file_can_be_chosen(tmp_path, capsys):
    make_config(tmp_path)
    rows = [{"table": x, "row": "a", "config": "config.yaml"} for x in ("t", "u", "v")]
    words = ["--rows", write_rows(tmp_path, rows), "--output", tmp_path / "out", "--configs-only"]
    assert main([*map(str, words), "--table", "v", "t"]) == 0
    assert sorted(x.name for x in (tmp_path / "out").iterdir()) == ["t-a.yaml", "v-a.yaml"]
    assert "--table: Unknown table 'w'" in get_error(capsys, *words, "--table", "w")


def test_rows_that_would_share_a_file_are_refused(tmp_path, capsys):
    for name in ("a", "b"):
        make_config(tmp_path).rename(tmp_path / f"{name}.yaml")
    file = write_rows(tmp_path, [{"table": "t", "row": "same", "config": "*.yaml"}])
    assert "rows 'same' and 'same' would both be written to t-same.yaml" in get_error(
        capsys, "--rows", file
    )


def test_rows_for_other_bases_are_left_out():
    rows = sweep_rows.read_rows(Path(get_config_file(sweep_rows.PAPER_ROWS)), "digits")
    assert "1b" in rows and "2" not in rows
    names = [x.name for x in rows["1b"]]
    assert names == [x.name for x in sweep_rows.read_table("1b", "digits")]


def test_configs_only_writes_rows_for_train_net(tmp_path, capsys):
    words = ["--table", "1b", "3", "--base", "coco", "--configs-only", "--output", str(tmp_path)]
    assert main(words) == 0
    assert "11 configs" in capsys.readouterr().out
    assert main([*words, "--json"]) == 0
    assert not capsys.readouterr().out
    content = yaml.safe_load((tmp_path / "1b-fl-gamma-0.5-alpha-0.5.yaml").read_text())
    assert (tmp_path / content.pop("_BASE_")).is_file()
    assert content == {"MODEL": {"RETINANET": {"FOCAL_LOSS_GAMMA": 0.5, "FOCAL_LOSS_ALPHA": 0.5}}}


@pytest.fixture(scope="module")
def swept(data_env, tmp_path_factory):
    """A sweep of three runs: of start weights, of a row from them, and of one that diverges."""
    folder = tmp_path_factory.mktemp("swept")
    make_config(folder)
    start = {"file": str(folder / "start.pth"), "keep": "backbone.", "train": "config.yaml"}
    rows = []
    for name, rate in (("good", 0.001), ("bad", 1e30)):
        keys = {"SOLVER.BASE_LR": rate, "MODEL.WEIGHTS": start["file"]}
        rows.append({"table": "t", "row": name, "config": "config.yaml", "set": keys})
    file = write_rows(folder, rows, start=[start])
    words = ["sweep", "--rows", str(file), "--output", str(folder / "out"), "--jobs", "2"]
    _, output = run_program(*words, env=data_env)
    return folder, words[1:], output


def test_runs_end_with_a_result_or_what_went_wrong(swept):
    folder, _, output = swept
    assert "t-good, seed 1: done, AP" in output
    assert "t-bad, seed 1: diverged: Iteration 1: loss_cls is nan" in output
    (content,) = [json.loads(x.read_text()) for x in (folder / "out").glob("results_*.json")]
    good, bad = (row["runs"][0] for row in content["rows"])
    assert good["figures"]["bbox/AP"] >= 0 and good["seconds_per_iter"] > 0
    assert good["AP_after"] == {"4": good["figures"]["bbox/AP"]}
    assert good["device"].startswith("CPU, ") and good["threads"] == 1 and good["commit"]
    assert bad["status"] == "diverged"
    assert "| bad |" in output and "1 diverged |" in output
    assert (folder / "out" / "results_t.png").stat().st_size > 5000


def test_rows_start_from_a_part_of_the_start_run(swept):
    folder, _, _ = swept
    kept = torch.load(folder / "start.pth", weights_only=True)["model"]
    assert all(x.startswith("backbone.") for x in kept)
    (file,) = (folder / "out" / "runs").glob("start-*/model_final.pth")
    trained = torch.load(file, weights_only=True)["model"]
    assert all(torch.equal(value, trained[name]) for name, value in kept.items())
    log = (folder / "out" / "runs" / "t-good_seed1" / "terminal.txt").read_text()
    assert f"Loading from {folder / 'start.pth'}" in log


def test_repeated_sweep_runs_nothing_again(swept, data_env, monkeypatch, capsys):
    folder, words, _ = swept
    monkeypatch.setattr(subprocess, "Popen", None)
    for key, value in data_env.items():
        monkeypatch.setenv(key, value)
    before = (folder / "out" / "results_t.md").read_text()
    assert main([*words, "--json"]) == 0
    captured = capsys.readouterr()
    (content,) = json.loads(captured.out)
    assert [x["row"] for x in content["rows"]] == ["good", "bad"]
    assert "2 runs, 2 of them with a result" in captured.err
    assert (folder / "out" / "results_t.md").read_text() == before


def test_run_of_a_version_that_lacks_a_key_counts(swept, data_env, monkeypatch, capsys):
    folder, words, _ = swept
    monkeypatch.setattr(subprocess, "Popen", None)
    for key, value in data_env.items():
        monkeypatch.setenv(key, value)
    file = folder / "out" / "runs" / "t-good_seed1" / "config.yaml"
    text = file.read_text()
    content = yaml.safe_load(text)
    del content["MODEL"]["FOCAL_DET"]["ASSIGNER"]
    file.write_text(yaml.safe_dump(content))
    try:
        assert main(words) == 0
    finally:
        file.write_text(text)
    assert "2 runs, 2 of them with a result" in capsys.readouterr().err
    # A row that sets a newer key is another row.
    file.write_text(yaml.safe_dump(content))
    try:
        error = get_error(capsys, *words, "MODEL.FOCAL_DET.ASSIGNER.NAME", "ATSSAssigner")
    finally:
        file.write_text(text)
    assert "holds a run with MODEL.FOCAL_DET.ASSIGNER.NAME 'IoUAssigner', but" in error


def test_run_with_other_settings_is_refused(swept, capsys):
    _, words, _ = swept
    error = get_error(capsys, *words, "SOLVER.MAX_ITER", "9")
    assert "holds a run with SOLVER.MAX_ITER 4, but" in error


def test_half_written_result_is_never_read(tmp_path, monkeypatch):
    """A sweep looks at its runs while they end: half a json once stopped it."""
    monkeypatch.setattr(Run, "command", ["-c", "raise SystemExit('no such config')"])
    run = Run(tmp_path / "none.yaml", 1, tmp_path / "run", "shapes_train", 4)
    seen = []
    replace = Path.replace

    def replace_and_look(part, target):
        seen.append(run.read_result())
        assert json.loads(part.read_text())["status"] == "crashed"
        return replace(part, target)

    monkeypatch.setattr(Path, "replace", replace_and_look)
    assert execute(run)["error"] == "no such config" and seen == [{}]
    assert json.loads(run.result_file.read_text())["seed"] == 1
    assert not list(run.folder.glob(".*.part"))


@pytest.mark.slow
def test_interrupted_sweep_continues_to_the_same_results(data_env, tmp_path):
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
    assert process.returncode == 130 and "repeat the command to continue" in output
    assert "focal-det sweep: interrupted" in output
    assert not (folder / "model_final.pth").is_file()
    run_python("-m", "focal_det.tools", *words, tmp_path / "parts", env=data_env)
    assert "continuing exactly after iteration" in (folder / "terminal.txt").read_text()
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
def test_submitit_executes_each_run_as_a_job(data_env, tmp_path, monkeypatch):
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


def test_slurm_parameters_of_the_project_page_are_read(tmp_path):
    pytest.importorskip("submitit")
    (words,) = re.findall(
        r"--slurm\s+([^`]+)`", (ROOT / "projects" / "PaperTables" / "README.md").read_text()
    )
    parameters = make_executor(tmp_path, words.split(), cluster="local")._executor.parameters
    assert parameters["gpus_per_node"] == 8
    with pytest.raises(ValueError, match="--slurm takes KEY=VALUE, got 'gpus_per_node'"):
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


def test_results_show_mean_deviation_and_failures():
    content = make_content([10.0, 14.0], [])
    lines = make_results_table(content).splitlines()
    assert (
        lines[2].startswith("| row 0 | 12.0 ± 2.8 |")
        and "| 31.1 |" in lines[2]
        and lines[2].endswith("| 2 |")
    )
    assert lines[3].startswith("| row 1 |  |") and lines[3].endswith("| 1, 1 diverged |")
    axes = make_results_figure(content).axes[0]
    assert [x.get_text() for x in axes.get_xticklabels()] == ["row 0", "row 1"]
    assert [x.get_text() for x in axes.texts] == ["1, 1 diverged"]
