"""`focal-det bench`: every benchmark runs, says what it measured and where the json is."""

import json
import time

import pytest
import torch

from focal_det.experiments.timing import (
    Timing,
    compute_ratios,
    find_largest_batch,
    make_table,
    time_alternating,
)
from focal_det.tools.bench import main


@pytest.mark.parametrize("what", ["loss", "labels", "step", "infer"])
def test_every_benchmark_runs_ours_and_the_peers(what, tmp_path, capsys):
    assert main([what, "--quick", "--write", str(tmp_path)]) == 0
    (file,) = tmp_path.glob(
        f"{what}_quick_{'2000x80' if what == 'loss' else '160x128'}_CPU*_float32_*.json"
    )
    assert [x.stem for x in tmp_path.glob("*.png")] == ([file.stem] if what == "loss" else [])
    content, output = json.loads(file.read_text()), capsys.readouterr().out
    assert "small inputs favour the peers" in output and "one round is not a measurement" in output
    assert content["conditions"]["torch"] and str(file) in output
    for result in content["results"]:
        assert result["case"] in output and len(result["contenders"]) >= 2
        assert result["contenders"]["focal_det"]["ratio"] == 1
        assert all(
            "error" not in x and x["median_seconds"] > 0 for x in result["contenders"].values()
        )


def test_contenders_take_turns_and_the_slower_one_has_the_larger_ratio():
    calls = []

    def make(name, seconds):
        return lambda: (calls.append(name), time.sleep(seconds))

    timings = time_alternating({"ours": make("ours", 0.01), "peer": make("peer", 0.05)}, rounds=3)
    assert calls == ["ours", "peer"] * 5  # once to warm up, once for the memory
    assert len(timings["ours"].seconds) == 3 and compute_ratios(timings, "ours")["peer"][0] > 2


def test_the_ratio_is_the_median_of_the_rounds():
    timings = {"ours": Timing([1.0, 2.0, 1.0]), "peer": Timing([3.0, 4.0, 10.0])}
    assert compute_ratios(timings, "ours") == {"peer": (3.0, 2.0, 10.0)}


def test_a_contender_that_cannot_run_is_reported_and_the_others_go_on():
    def fail():
        raise RuntimeError("out of memory\nand more")

    timings = time_alternating({"ours": lambda: None, "peer": fail}, rounds=2)
    assert "RuntimeError: out of memory" in "\n".join(make_table(timings, "ours", None))
    assert len(timings["ours"].seconds) == 2 and compute_ratios(timings, "ours") == {}


def test_memory_is_what_the_tensors_of_a_call_have_at_most():
    def allocate():
        x = torch.ones(25_000_000)  # 100 MB
        y = x + 1  # beside it
        del x
        return y + 1  # in its place

    timing = time_alternating({"ours": allocate}, rounds=1)["ours"]
    assert 2.0e8 <= timing.peak_bytes < 2.001e8


def test_the_largest_batch_is_found_between_what_fits_and_what_does_not():
    calls = []

    def step(images):
        calls.append(images)
        if images > 37:
            raise torch.OutOfMemoryError("too many")

    assert find_largest_batch(step, limit=256) == 37 and len(calls) < 15
    assert find_largest_batch(lambda images: None, limit=100) == 100
    assert find_largest_batch(lambda images: step(38), limit=100) == 0


@pytest.mark.parametrize("what", ["loss", "step", "infer"])
def test_in_half_precision_as_well(what, capsys):
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
    with pytest.raises(SystemExit):
        main(argv)
    assert message in capsys.readouterr().err
