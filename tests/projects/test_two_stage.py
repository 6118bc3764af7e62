"""projects/TwoStage: its rows differ in their answer to imbalance alone, and train equally long."""

import json

import pytest

from focal_det.experiments.sweep_rows import load_rows, read_rows
from focal_det.modeling.build import flatten_config
from tests.conftest import ROOT, load_dev
from tests.projects.results import assert_three_seeds

FOLDER = ROOT / "projects" / "TwoStage"
TABLES = {"digits": "rows.json", "bccd": "bccd_rows.json"}
# Where rows of a table may differ: the detector, its losses and samples, and how long it trains.
ANSWERS = (
    "MODEL.META_ARCHITECTURE",
    "MODEL.PROPOSAL_GENERATOR.NAME",
    "MODEL.RETINANET.FOCAL_LOSS_",
    "MODEL.RPN.",
    "MODEL.ROI_HEADS.",
    "MODEL.ROI_BOX_HEAD.",
    "MODEL.FOCAL_DET.CLS_LOSS.",
    "MODEL.FOCAL_DET.RPN.",
    "MODEL.FOCAL_DET.ROI_BOX_HEAD.",
    "SOLVER.BASE_LR",
    "SOLVER.WARMUP_ITERS",
    "SOLVER.STEPS",
    "SOLVER.MAX_ITER",
)
SECONDS = {"digits": 180, "bccd": 240}


@pytest.fixture(params=TABLES)
def configs(request, monkeypatch):
    """A table, and the config of each of its rows."""
    monkeypatch.chdir(ROOT)
    (rows,) = read_rows(FOLDER / TABLES[request.param]).values()
    return request.param, {row.name: cfg for row, cfg in load_rows(rows, ()).items()}


def read_result(name):
    return json.loads((FOLDER / "results" / f"{name}.json").read_text())


def test_rows_differ_in_their_answer_and_length_alone(configs):
    _, cfgs = configs
    expected = flatten_config(cfgs["retinanet_focal"])
    for cfg in cfgs.values():
        differing = {k for k, v in flatten_config(cfg).items() if v != expected[k]}
        assert [x for x in differing if not x.startswith(ANSWERS)] == []


def test_rows_train_for_the_same_time(configs):
    table, cfgs = configs
    steps = read_result(f"{table}_steps")["rows"]
    for name, cfg in cfgs.items():
        seconds = steps[name]["seconds"] * cfg.SOLVER.MAX_ITER
        assert seconds == pytest.approx(SECONDS[table], rel=0.05), name
        # The same share of each run has a learning rate.
        shares = [x / cfg.SOLVER.MAX_ITER for x in cfg.SOLVER.STEPS]
        assert shares == pytest.approx([0.73, 0.9], abs=0.01), name


def test_every_row_has_three_seeds_from_one_commit(configs):
    table, cfgs = configs
    assert_three_seeds(read_result(table), cfgs)


def test_every_run_of_a_two_stage_detector_has_its_recall(configs):
    table, cfgs = configs
    recalls = read_result(f"{table}_recall")["runs"]
    two_stage = [x for x, cfg in cfgs.items() if cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"]
    assert recalls.keys() == {f"{table}-{x}_seed{i}" for x in two_stage for i in (1, 2, 3)}
    assert all(0 < x["AR@100"] <= x["AR@1000"] <= 100 for x in recalls.values())


def test_arrows_are_for_differences_of_more_than_two_errors():
    # The error of each mean is 1, that of a difference the square root of 2.
    column = {
        "faster_rcnn": [39.0, 41.0],
        "better": [42.0, 44.0],
        "same": [41.8, 43.8],
        "worse": [30.0, 32.0],
        "no_proposals": [],
    }
    table = load_dev("render_two_stage")
    cells = {name: table.render_cell(name, column) for name in column}
    assert cells == {
        "faster_rcnn": "40.0 ± 1.0",
        "better": "43.0 ± 1.0 ▲",
        "same": "42.8 ± 1.0",
        "worse": "31.0 ± 1.0 ▼",
        "no_proposals": "",
    }
