"""`focal-det bench`: every benchmark runs, shows its figures and names its files."""

import json
import time

import pytest
import torch

from focal_det.experiments.timing import (
    Timing,
    compute_ratios,
    find_largest_batch,
    summarize,
    time_alternating,
)
from focal_det.report.scaling import make_timing_table
from focal_det.tools.bench import main


def get_error(capsys, *argv):
    with pytest.raises(SystemExit) as error:
        main(argv)
    assert error.value.code == 2
    return capsys.readouterr().err


SHAPES = {"loss": "2000x80", "labels": "160x128", "step": "160x128", "infer": "160x128"}


@pytest.mark.parametrize(
    "what", ["loss", "labels", pytest.param("step", marks=pytest.mark.slow), "infer"]
)
def test_each_benchmark_compares_ours_with_peers(what, tmp_path, capsys):
    assert main([what, "--quick", "--output", str(tmp_path)]) == 0
    (file,) = tmp_path.glob(f"{what}_quick_{SHAPES[what]}_CPU*_float32_*.json")
    pictures = [x.stem for x in tmp_path.glob("*.png")]
    assert pictures == ([file.stem] if what == "loss" else [])
    content = json.loads(file.read_text())
    output = capsys.readouterr().out
    assert "small inputs favour the peers" in output and "one round is not a measurement" in output
    assert str(file) in output
    assert content["command"] == f"focal-det bench {what} --quick --output {tmp_path}"
    assert content["versions"]["torch"] == torch.__version__ and content["threads"]
    for result in content["results"]:
        assert result["case"] in output and len(result["contenders"]) >= 2
        assert result["contenders"]["focal_det"]["ratio"] == 1
        for contender in result["contenders"].values():
            assert "error" not in contender and contender["median_seconds"] > 0
    if what == "step":
        assert [x["case"].split(",")[0] for x in content["results"]] == [
            "training step: R50-FPN",
            "training step: Faster R-CNN R50-FPN",
        ]


def test_json_is_all_that_stdout_has(capsys):
    assert main(["labels", "--quick", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["benchmark"] == "labels"
    assert "one round is not a measurement" in captured.err


def test_contenders_take_turns():
    calls = []

    def make(name, seconds):
        return lambda: (calls.append(name), time.sleep(seconds))

    timings = time_alternating({"ours": make("ours", 0.01), "peer": make("peer", 0.05)}, rounds=3)
    assert calls == ["ours", "peer"] * 5  # once to warm up, once for the memory
    assert len(timings["ours"].seconds) == 3 and compute_ratios(timings, "ours")["peer"][0] > 2


def test_ratio_is_the_median_of_the_rounds():
    timings = {"ours": Timing([1.0, 2.0, 1.0]), "peer": Timing([3.0, 4.0, 10.0])}
    assert compute_ratios(timings, "ours") == {"peer": (3.0, 2.0, 10.0)}


def fail():
    raise RuntimeError("out of memory\nand more")


def test_failed_contender_is_reported_and_others_continue():
    timings = time_alternating({"ours": lambda: None, "peer": fail}, rounds=2)
    case = {"case": "a case", "contenders": summarize(timings, "ours")}
    assert "RuntimeError: out of memory\n" in f"{make_timing_table(case, 'ours')}\n"
    assert len(timings["ours"].seconds) == 2 and compute_ratios(timings, "ours") == {}


def test_peers_have_no_ratio_if_ours_failed():
    timings = time_alternating({"ours": fail, "peer": lambda: None}, rounds=2)
    contenders = summarize(timings, "ours")
    assert contenders["peer"]["ratio"] is None and "error" in contenders["ours"]
    assert "peer" in make_timing_table({"case": "a case", "contenders": contenders}, "ours")


def test_memory_is_the_peak_of_a_call():
    def allocate():
        x = torch.ones(25_000_000)  # 100 MB
        y = x + 1  # beside it
        del x
        return y + 1  # in its place

    timing = time_alternating({"ours": allocate}, rounds=1)["ours"]
    assert 2.0e8 <= timing.peak_bytes < 2.001e8


def test_largest_batch_is_found_by_bisection():
    calls = []

    def step(images):
        calls.append(images)
        if images > 37:
            raise torch.OutOfMemoryError("too many")

    assert find_largest_batch(step, limit=256) == 37 and len(calls) < 15
    assert find_largest_batch(lambda images: None, limit=100) == 100
    assert find_largest_batch(lambda images: step(38), limit=100) == 0


@pytest.mark.parametrize("what", ["loss", pytest.param("step", marks=pytest.mark.slow)])
def test_benchmarks_run_in_half_precision(what, capsys):
    """The inference is in the same autocast as the step."""
    assert main([what, "--quick", "--dtype", "bfloat16"]) == 0
    assert "dtype: bfloat16" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["loss", "--rounds", "0"], "--rounds must be >= 1"),
        (["lose"], "invalid choice"),
        (["labels", "--dtype", "float16"], "float32 only"),
    ],
)
def test_bad_arguments_are_named(argv, message, capsys):
    assert message in get_error(capsys, *argv)
