"""Advice on loss and sampling: only what was recorded, on the data that are most alike."""

import json

import numpy as np
import pytest

from focal_det.env import load_config
from focal_det.imbalance import advice
from focal_det.imbalance.advice import make_advice
from focal_det.imbalance.stages import Balance
from tests.conftest import ROOT, load_dev

CONFIG = "digits/focal_retinanet_tiny.yaml"
LOSS = "MODEL.FOCAL_DET.CLS_LOSS.NAME"
GAMMA = "MODEL.RETINANET.FOCAL_LOSS_GAMMA"
SAMPLER = "DATALOADER.SAMPLER_TRAIN"
BALANCED = np.array([50, 50])
SIZES = ("negatives_per_positive", "classes")


def make_answer(name, mean, values, error=0.5):
    rate = 0.005 if name == "CE" else 0.01
    return {"name": name, "values": values, "rate": rate, "mean": mean, "error": error}


CE = {LOSS: "FocalLoss", GAMMA: 0.0}
FL = {LOSS: "FocalLoss", GAMMA: 2.0}
EVIDENCE = {
    # CE is better at 100 and FL at 10,000; at 1,000 and for many classes they are level.
    "loss": [
        {
            "sizes": dict(zip(SIZES, sizes)),
            "record": f"{sizes[0]}_{sizes[1]}.json",
            "answers": [make_answer("FL", of_fl, FL), make_answer("CE", of_ce, CE)],
        }
        for sizes, of_fl, of_ce in (
            ((100.0, 2), 40.0, 45.0),
            ((10_000.0, 2), 45.0, 40.0),
            ((1_000.0, 2), 44.0, 45.0),
            ((10_000.0, 8), 44.0, 45.0),
        )
    ],
    "sampling": [
        {
            "sizes": {"most_per_least_frequent": 100.0, "classes": 3},
            "record": "tail.json",
            "answers": [
                make_answer("plain", 20.0, {SAMPLER: "TrainingSampler"}),
                make_answer("repeated", 30.0, {SAMPLER: "RepeatFactorTrainingSampler"}),
            ],
        }
    ],
}


@pytest.fixture(autouse=True)
def evidence(monkeypatch, tmp_path):
    file = tmp_path / "evidence.json"
    file.write_text(json.dumps(EVIDENCE))
    monkeypatch.setattr(advice, "_EVIDENCE", file)


def get_advice(ratio, gamma=2.0, counts=BALANCED, config=CONFIG):
    cfg = load_config(config, [GAMMA, str(gamma)])
    return cfg, make_advice(cfg, Balance(positives=10, negatives=round(10 * ratio)), counts)


@pytest.mark.parametrize(
    ("ratio", "gamma", "advised"),
    [(150, 2.0, 0.0), (150, 0.0, None), (9_000, 0.0, 2.0), (9_000, 2.0, None)],
)
def test_the_best_loss_at_the_nearest_imbalance_is_advised(ratio, gamma, advised):
    _, (loss,) = get_advice(ratio, gamma)
    record = "100.0_2.json" if ratio < 1000 else "10000.0_2.json"
    assert loss.topic == "loss" and loss.records == [record]
    assert record in loss.lines[0]
    if advised is None:
        assert loss.values == {} and loss.lines[0].startswith("keep ")
    else:
        assert loss.values[GAMMA] == advised and " with yours, " in loss.lines[0]


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize(("ratio", "num_classes"), [(1000, 2), (10_000, 8), (10_000, 5)])
def test_level_answers_stay_as_configured(ratio, num_classes, gamma):
    _, (loss,) = get_advice(ratio, gamma, counts=np.full(num_classes, 50))
    assert loss.values == {}
    assert loss.records == [f"{ratio}.0_{2 if num_classes == 2 else 8}.json"]


@pytest.mark.parametrize(("error", "is_level"), [(0.01, False), (0.6, True)])
@pytest.mark.parametrize("gain", [1.1, 0.9])
def test_a_change_must_be_worth_it(gain, error, is_level):
    """Beyond two standard errors of the difference, and by more than one AP."""
    mine = advice.Answer("mine", FL, 0.01, 40.0, error)
    other = advice.Answer("other", CE, 0.01, 40.0 + gain, error)
    assert mine.is_level_with(other) == (is_level or gain < 1)


def test_what_was_not_compared_stays_as_configured():
    """Of level answers, the first is named."""
    _, (loss,) = get_advice(1000, gamma=5.0)
    assert loss.values == {}
    assert loss.lines[0].startswith("yours was not compared; best was FL: AP 44.0 ± 0.5 (digits, ")


@pytest.mark.parametrize(
    ("ratio", "num_classes", "text"),
    [
        (19, 2, "19 negative anchors per positive, 2 classes are unlike all records; "),
        (50_100, 2, "50100 negative anchors per positive, 2 classes are unlike all records; "),
        (10_000, 41, "10000 negative anchors per positive, 41 classes are unlike all records; "),
        # Each size is within the records, and both together are not.
        (100, 11, "100 negative anchors per positive, 11 classes are unlike all records; "),
    ],
)
def test_what_is_unlike_all_records_gets_no_advice(ratio, num_classes, text):
    _, (loss,) = get_advice(ratio, counts=np.full(num_classes, 50))
    assert loss.values == {} and not loss.records
    assert loss.lines[0].startswith(f"no advice: {text}")
    assert "the most similar is digits, " in loss.lines[0]


def test_the_learning_rate_changes_as_in_the_record():
    _, (loss,) = get_advice(150, 2.0)
    assert ", at 0.5 times the learning rate: AP 45.0 " in loss.lines[0]
    # That of the config is 0.05.
    assert loss.values["SOLVER.BASE_LR"] == 0.025
    _, (loss,) = get_advice(9_000, 0.0)
    assert ", at 2 times the learning rate: AP 45.0 " in loss.lines[0]


def test_a_model_that_reads_no_loss_of_ours_gets_no_advice():
    cfg = load_config(CONFIG, ["MODEL.META_ARCHITECTURE", "RetinaNet"])
    assert make_advice(cfg, Balance(positives=10, negatives=1500), BALANCED) == []


@pytest.mark.parametrize(
    ("counts", "texts"),
    [
        (BALANCED, []),
        ([190, 10], []),
        (
            [1000, 10, 0],
            ["better: repeated: AP 30.0 ± 0.5, and 20.0 ± 0.5 with yours, plain (digits, 100 "],
        ),
        ([9000, 10], ["no advice: 900 objects of the most frequent class for each"]),
    ],
)
def test_sampling_is_advised_for_a_long_tail(counts, texts):
    _, (_, *sampling) = get_advice(1000, counts=np.array(counts))
    assert [x.lines[0].startswith(text) for x, text in zip(sampling, texts)] == [True] * len(texts)
    assert len(sampling) == len(texts)


@pytest.mark.parametrize(
    ("first", "second", "advised"), [("CE", "CE", "CE"), ("CE", "OHEM", ""), ("CE", "FL", "")]
)
def test_a_change_is_advised_where_records_of_the_same_data_agree(
    first, second, advised, monkeypatch, tmp_path
):
    values = {"FL": FL, "CE": CE, "OHEM": {LOSS: "OHEMLoss"}}
    comparisons = []
    for best, ratio in ((first, 100.0), (second, 103.0)):
        means = {"FL": 40.0, "CE": 41.5, "OHEM": 30.0} | {best: 45.0}
        answers = [make_answer(name, mean, values[name], 0.1) for name, mean in means.items()]
        sizes = dict(zip(SIZES, (ratio, 2)))
        comparisons.append({"sizes": sizes, "record": f"{ratio}.json", "answers": answers})
    file = tmp_path / "two.json"
    file.write_text(json.dumps({"loss": comparisons}))
    monkeypatch.setattr(advice, "_EVIDENCE", file)
    _, (loss,) = get_advice(102)
    assert loss.records == ["100.0.json", "103.0.json"]
    loss.values.pop("SOLVER.BASE_LR", None)
    assert loss.values == (values[advised] if advised else {})
    assert ("these records differ, so nothing is advised" in loss.lines) == (not advised)


def test_detectors_without_records_get_no_advice():
    cfg = load_config("digits/faster_rcnn_tiny.yaml")
    assert make_advice(cfg, Balance(positives=1, negatives=1000), BALANCED) == []
    cfg = load_config(CONFIG)
    assert make_advice(cfg, Balance(positives=0, negatives=1000), BALANCED) == []


def test_the_evidence_is_that_of_the_records(monkeypatch):
    monkeypatch.undo()
    monkeypatch.syspath_prepend(ROOT / "dev")
    script = load_dev("render_evidence")
    recorded = script.make_evidence()
    assert json.loads(script.EVIDENCE.read_text()) == recorded
    for comparison in recorded["loss"] + recorded["sampling"]:
        assert (ROOT / comparison["record"]).is_file()
        assert all(x["error"] > 0 for x in comparison["answers"])
