"""Normalizers: the divisor, its state and its invariance to the number of processes."""

import pytest
import torch
from torch import distributed, multiprocessing, nn

from focal_det.normalizers import EMAPosCount, GlobalPosCount


def test_ema_follows_detectron2():
    normalizer = EMAPosCount(momentum=0.9, initial=100.0)
    # 0.9 * 100 + 0.1 * 30 = 93; then no positives count as 1: 0.9 * 93 + 0.1 = 83.8
    assert normalizer(torch.tensor([10, 20])).item() == pytest.approx(93)
    assert normalizer(torch.tensor([0, 0])).item() == pytest.approx(83.8)


def test_ema_stands_still_in_evaluation_and_keeps_earlier_divisors():
    normalizer = EMAPosCount()
    first = normalizer(torch.tensor([10]))
    normalizer(torch.tensor([500]))
    assert first.item() == pytest.approx(91)
    before = normalizer.average.clone()
    normalizer.eval()(torch.tensor([500]))
    assert normalizer.average == before


def test_ema_is_saved_and_resumed_bit_equal():
    normalizer, resumed = EMAPosCount(), EMAPosCount()
    normalizer(torch.tensor([7]))
    resumed.load_state_dict(normalizer.state_dict())
    assert torch.equal(resumed(torch.tensor([3])), normalizer(torch.tensor([3])))


def test_checkpoint_without_the_average_loads_without_complaint():
    model = nn.ModuleDict({"normalizer": EMAPosCount(initial=50.0), "head": nn.Linear(2, 2)})
    state = {k: v for k, v in model.state_dict().items() if "normalizer" not in k}
    result = model.load_state_dict(state)
    assert not result.missing_keys and model["normalizer"].average == 50


@pytest.mark.parametrize(("kwargs", "name"), [({"momentum": 1.0}, "momentum"), ({"initial": 0.0}, "initial")])
def test_values_out_of_range_are_named(kwargs, name):
    with pytest.raises(ValueError, match=name):
        EMAPosCount(**kwargs)


def test_global_count_in_one_process_is_at_least_one():
    assert GlobalPosCount()(torch.tensor([3, 4])) == 7
    assert GlobalPosCount()(torch.tensor([0, 0])) == 1


def _divide_in_process(rank, counts, init_file, results):
    distributed.init_process_group("gloo", init_method=f"file://{init_file}", rank=rank, world_size=len(counts))
    results[rank] = GlobalPosCount()(torch.tensor([counts[rank]])).item()
    distributed.destroy_process_group()


@pytest.mark.parametrize(("counts", "divisor"), [([5, 0], 2.5), ([0, 0], 0.5), ([1, 2], 1.5)])
def test_global_count_is_the_same_in_every_process(counts, divisor, tmp_path):
    results = multiprocessing.get_context("spawn").Manager().dict()
    multiprocessing.spawn(_divide_in_process, (counts, tmp_path / "init", results), nprocs=len(counts))
    # Mean over processes of (loss / divisor) = (sum of losses) / (positives of all, at least 1).
    assert dict(results) == {0: divisor, 1: divisor}
