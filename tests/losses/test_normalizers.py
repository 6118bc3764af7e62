"""Normalizers: the divisor, its state and its invariance to the number of processes."""

import copy
import json

import pytest
import torch
from torch import distributed, nn

from focal_det.losses.normalizers import (
    Constant,
    EMAPosCount,
    GlobalEMAPosCount,
    GlobalPosCount,
    PerImagePosCount,
)
from focal_det.registry import NORMALIZER_REGISTRY
from tests.conftest import run_ranks

EMAS = [EMAPosCount, GlobalEMAPosCount]


@pytest.mark.parametrize("ema", EMAS)
def test_ema_in_one_process_follows_detectron2(ema):
    normalizer = ema(momentum=0.9, initial=100.0)
    # 0.9 * 100 + 0.1 * 30 = 93; then no positives count as 1: 0.9 * 93 + 0.1 = 83.8
    assert normalizer(torch.tensor([10, 20])).item() == pytest.approx(93)
    assert normalizer(torch.tensor([0, 0])).item() == pytest.approx(83.8)


@pytest.mark.parametrize("ema", EMAS)
def test_ema_moves_in_training_steps_only(ema):
    normalizer = ema()
    first = normalizer(torch.tensor([10]))
    normalizer(torch.tensor([500]))
    assert first.item() == pytest.approx(91)
    before = normalizer.average.clone()
    with torch.no_grad():
        assert normalizer(torch.tensor([500])) > before
    normalizer.eval()(torch.tensor([500]))
    assert normalizer.average == before


@pytest.mark.parametrize("ema", EMAS)
def test_ema_is_saved_and_resumed_bit_equal(ema, tmp_path):
    normalizer, resumed = ema(), ema()
    normalizer(torch.tensor([7]))
    torch.save(normalizer.state_dict(), tmp_path / "state.pth")
    resumed.load_state_dict(torch.load(tmp_path / "state.pth"))
    for count in (3, 0, 4):
        assert torch.equal(resumed(torch.tensor([count])), normalizer(torch.tensor([count])))


@pytest.mark.parametrize("ema", EMAS)
@pytest.mark.parametrize("assign", [False, True])
def test_checkpoint_without_the_average_loads_strictly(ema, assign):
    model = nn.ModuleDict({"normalizer": ema(initial=50.0), "head": nn.Linear(2, 2)})
    state = {k: v.clone() for k, v in model.state_dict().items() if "normalizer" not in k}
    result = model.load_state_dict(state, strict=True, assign=assign)
    assert (
        not result.missing_keys
        and not result.unexpected_keys
        and set(state) == {"head.weight", "head.bias"}
    )
    # It goes on from the value it had: 0.9 * 50 + 0.1 * 60 = 51.
    assert model["normalizer"](torch.tensor([60])).item() == pytest.approx(51)


def test_only_the_buffers_of_the_module_itself_are_optional():
    normalizer = EMAPosCount()
    normalizer.weight = nn.Parameter(torch.zeros(1))
    normalizer.child = nn.Module()
    normalizer.child.register_buffer("count", torch.zeros(1))
    assert set(normalizer.load_state_dict({}, strict=False).missing_keys) == {
        "weight",
        "child.count",
    }
    with pytest.raises(RuntimeError, match="size mismatch for average"):
        EMAPosCount().load_state_dict({"average": torch.zeros(2)})


def test_per_image_count_divides_each_image_by_its_own():
    sums = torch.tensor([6.0, 8.0, 3.0])
    # (6 / 2 + 8 / 4 + 3 / 1) / 3 = 8 / 3; the third image has no positives, which count as 1.
    assert (sums / PerImagePosCount()(torch.tensor([2, 4, 0]))).sum().item() == pytest.approx(8 / 3)
    assert PerImagePosCount()(torch.tensor([2, 4, 0])).tolist() == [6, 12, 3]


@pytest.mark.parametrize("counts", [[0, 0, 0], [5, 100, 1]])
def test_constant_depends_on_the_number_of_images_only(counts):
    # 3 images of 2.5 positives each.
    assert Constant(value=2.5)(torch.tensor(counts)) == 7.5


def test_global_count_in_one_process_is_at_least_one():
    assert GlobalPosCount()(torch.tensor([3, 4])) == 7
    assert GlobalPosCount()(torch.tensor([0, 0])) == 1


@pytest.mark.parametrize(
    "normalizer", [cls for _, cls in NORMALIZER_REGISTRY], ids=lambda x: x.__name__
)
def test_divisors_are_positive_float32(normalizer):
    num_pos = torch.tensor([0, 3, 0])
    divisor = normalizer()(num_pos)
    assert divisor.dtype == torch.float32 and divisor.shape in ((), (3,)) and (divisor > 0).all()
    assert num_pos.tolist() == [0, 3, 0]


@pytest.mark.parametrize(
    "normalizer", [cls for _, cls in NORMALIZER_REGISTRY], ids=lambda x: x.__name__
)
def test_compiled_equals_eager_over_three_steps(normalizer):
    eager = normalizer()
    compiled = copy.deepcopy(eager)
    compiled.compile(backend="aot_eager")
    for counts in ([3, 4], [0, 0], [500, 1]):
        grads = []
        for module in (eager, compiled):
            sums = torch.ones(2, requires_grad=True)
            loss = (sums / module(torch.tensor(counts))).sum()
            grads.append(torch.autograd.grad(loss, sums)[0])
        torch.testing.assert_close(*grads)
        torch.testing.assert_close(compiled.state_dict(), eager.state_dict())
    torch.compiler.reset()


@pytest.mark.parametrize(
    ("normalizer", "name", "value"),
    [(ema, "momentum", value) for ema in EMAS for value in (1.0, -0.1, float("nan"))]
    + [(ema, "initial", value) for ema in EMAS for value in (0.0, 0.5, float("inf"), float("nan"))]
    + [(Constant, "value", value) for value in (0.0, -1.0, float("inf"), float("nan"))],
)
def test_values_out_of_range_are_named(normalizer, name, value):
    with pytest.raises(ValueError, match=rf"{name} must be .*, got {value}"):
        normalizer(**{name: value})


# Positives of the images of each of two processes, in three steps.
STEPS = [[[7], [0]], [[0], [0]], [[1], [2]]]
# Mean over processes of (loss / divisor) = (sum of losses) / (divisor * 2), so twice a divisor is
# what the sum is divided by.
DIVISORS = {
    # 7 / 2; no positives anywhere count as 1: 1 / 2; 3 / 2
    "GlobalPosCount": [3.5, 0.5, 1.5],
    # It starts with 8 in each process, whatever their number: 0.5 * 8 + 0.5 * 3.5 = 5.75.
    "GlobalEMAPosCount": [5.75, 3.125, 2.3125],
}


def _divide_in_process(rank, folder):
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'init'}", rank=rank, world_size=2
    )
    normalizers = {
        "GlobalPosCount": GlobalPosCount(),
        "GlobalEMAPosCount": GlobalEMAPosCount(momentum=0.5, initial=8.0),
        "EMAPosCount": EMAPosCount(momentum=0.5, initial=8.0),
    }
    divisors = {
        k: [f(torch.tensor(step[rank])).item() for step in STEPS] for k, f in normalizers.items()
    }
    result = {"divisors": divisors, "resumed": _save_and_resume(normalizers, folder)}
    (folder / f"{rank}.json").write_text(json.dumps(result))
    distributed.destroy_process_group()


def _save_and_resume(normalizers, folder):
    """Averages after Detectron2 has saved and loaded a model with these normalizers."""
    from detectron2.checkpoint import DetectionCheckpointer

    DetectionCheckpointer(nn.ModuleDict(normalizers), str(folder)).save("model")
    distributed.barrier()
    resumed = nn.ModuleDict(
        {"GlobalEMAPosCount": GlobalEMAPosCount(), "EMAPosCount": EMAPosCount()}
    )
    DetectionCheckpointer(resumed, str(folder)).load(str(folder / "model.pth"))
    return {k: f.average.item() for k, f in resumed.items()}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """Per process, the divisors of three steps, and the averages that it resumes from."""
    folder = tmp_path_factory.mktemp("processes")
    run_ranks(_divide_in_process, folder, num_processes=2)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_global_divisors_are_the_same_in_every_process(two_processes):
    for result in two_processes:
        assert {k: result["divisors"][k] for k in DIVISORS} == DIVISORS


def test_every_process_resumes_from_the_first_average(two_processes):
    # From 8 to 7.5, 4.25, 2.625 in the first, and to 4.5, 2.75, 2.375 in the second.
    assert [x["divisors"]["EMAPosCount"][-1] for x in two_processes] == [2.625, 2.375]
    assert [x["resumed"]["EMAPosCount"] for x in two_processes] == [2.625, 2.625]


def test_a_global_average_resumes_exactly_in_every_process(two_processes):
    for result in two_processes:
        assert result["resumed"]["GlobalEMAPosCount"] == DIVISORS["GlobalEMAPosCount"][-1]
