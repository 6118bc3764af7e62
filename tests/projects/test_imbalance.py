"""projects/Imbalance: its rows differ in their answer alone, and train equally long."""

import json

import pytest
from detectron2.modeling import build_model

from focal_det.experiments.sweep_rows import load_rows, read_rows
from focal_det.modeling.build import flatten_config, read_settings
from tests.conftest import ROOT, load_dev, make_step
from tests.projects.results import assert_three_seeds

FOLDER = ROOT / "projects" / "Imbalance"
RUNGS = ("ten_60", "ten_500", "ten_4000", "60", "500", "4000")
# Where rows of a table may differ.
ANSWERS = (
    "MODEL.RETINANET.FOCAL_LOSS_",
    "MODEL.RETINANET.PRIOR_PROB",
    "MODEL.FOCAL_DET.CLS_LOSS.",
    "SOLVER.BASE_LR",
)
# Another architecture, whose steps take longer.
OTHER = "two stages"


def read_result(name):
    return json.loads((FOLDER / "results" / f"{name}.json").read_text())


@pytest.fixture(params=RUNGS)
def configs(request, monkeypatch):
    """A table, and the config of each of its rows."""
    monkeypatch.chdir(ROOT)
    rows = read_rows(FOLDER / "rows.json")[request.param]
    return request.param, {row.name: cfg for row, cfg in load_rows(rows, ()).items()}


def test_rows_differ_in_their_answer_and_rate_alone(configs):
    _, cfgs = configs
    expected = flatten_config(cfgs["FL"])
    cfgs.pop(OTHER, None)
    for name, cfg in cfgs.items():
        differing = {k for k, v in flatten_config(cfg).items() if v != expected[k]}
        assert [x for x in differing if not x.startswith(ANSWERS)] == [], name


def test_each_answer_makes_a_step(configs):
    _, cfgs = configs
    for cfg in cfgs.values():
        cfg.MODEL.DEVICE = "cpu"
        make_step(build_model(cfg), read_settings(cfg).num_classes)


def test_rows_train_for_the_same_time_and_are_evaluated_thrice(configs):
    table, cfgs = configs
    steps = read_result(f"{table}_steps")["rows"]
    seconds = {name: cfg.SOLVER.MAX_ITER * steps[name]["seconds"] for name, cfg in cfgs.items()}
    for name, cfg in cfgs.items():
        # Steps of mining take up to a quarter longer.
        assert seconds[name] == pytest.approx(seconds["FL"], rel=0.3), name
        assert name == OTHER or cfg.SOLVER.MAX_ITER == cfgs["FL"].SOLVER.MAX_ITER
        assert cfg.SOLVER.MAX_ITER == 3 * cfg.TEST.EVAL_PERIOD


def test_every_row_has_three_seeds(configs):
    table, cfgs = configs
    assert_three_seeds(read_result(table), cfgs)


def test_each_other_answer_was_searched_before_it_was_compared():
    rows = read_rows(FOLDER / "rows.json")
    names = [row["row"] for row in read_result("answers_search")["rows"]]
    assert names == [row.name for row in rows["answers_search"]]
    for row in rows["ten_500"]:
        rate = row.overrides["SOLVER.BASE_LR"]
        found = [name for name in names if name.startswith(f"{row.name}, rate")]
        assert not found or f"{row.name}, rate {rate}" in found


@pytest.mark.parametrize("table", ["search", "ten_search"])
def test_the_search_gives_each_answer_several_settings(table):
    names = [row["row"] for row in read_result(table)["rows"]]
    for answer in ("CE", "FL", "OHEM"):
        assert sum(x.startswith(f"{answer}, ") for x in names) >= 4


def test_pictures_are_drawn_from_the_results(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "dev")
    load_dev("draw_imbalance").main(tmp_path)
    assert {x.name for x in tmp_path.iterdir()} == {"ladder.png", "minutes.png"}
