"""A batch shared by 1, 2 and 4 processes: which losses and gradients of the model stay the same."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

from focal_det.registry import CLS_LOSS_REGISTRY, NORMALIZER_REGISTRY
from tests.conftest import make_batch, run_ranks
from tests.modeling.two_stage import BOX, FASTER, WITHOUT_SAMPLING, make_two_stage_cfg

NORMALIZER = "MODEL.FOCAL_DET.NORMALIZER.NAME"
EMA_ARGS = "MODEL.FOCAL_DET.NORMALIZER.ARGS.GlobalEMAPosCount"
# Normalizers whose loss depends on the number of processes, as in Detectron2.
PER_PROCESS = ["EMAPosCount"]
# What must not depend on it: the name of a case -> its overrides of the config.
CASES = {
    name: [NORMALIZER, name]
    for name, normalizer in NORMALIZER_REGISTRY
    if name not in PER_PROCESS and not normalizer.of_samples
}
# A short memory that starts near the counts of the batch, so that every step depends on the last.
CASES["GlobalEMAPosCount"] += [f"{EMA_ARGS}.momentum", 0.5]
# Losses with a state gather statistics over the processes.
for name, loss in CLS_LOSS_REGISTRY:
    if loss.stateful:
        CASES[name] = [NORMALIZER, "GlobalPosCount", "MODEL.FOCAL_DET.CLS_LOSS.NAME", name]
PER_PROCESS_CASES = {name: [NORMALIZER, name] for name in PER_PROCESS}
# No sampling, as each process draws its own sample.
TWO_STAGE = {
    **WITHOUT_SAMPLING,
    f"{BOX}.CLS_LOSS.NAME": "FocalLoss",
    "MODEL.RESNETS.NORM": "FrozenBN",
}
# Average before the first step over all processes; the argument is that of each.
EMA_INITIAL = 12.0
# Batch norm would make a difference that is not the loss's.
WITHOUT_BATCH_NORM = ["MODEL.RESNETS.NORM", "FrozenBN"]
NUM_STEPS = 3
# Besides one.
NUM_PROCESSES = [2, 4]


def make_images() -> list:
    """Objects on several levels, one object, an object without area and anchor, no object.

    The first of two processes has all positives of the batch. Of four processes, one has no
    positives and one has no objects.
    """
    return make_batch(
        [[16, 16, 52, 52], [30, 40, 110, 120], [0, 0, 128, 128]],
        [[70, 60, 100, 90]],
        [[10, 10, 10, 10]],
        [],
    )


def build(cfg, num_processes: int = 1) -> torch.nn.Module:
    """The model of a case, with the same weights in every process.

    A RetinaNet is in float64, whose rounding stays far below any real difference.
    """
    import detectron2.modeling

    cfg = cfg.clone()
    cfg.merge_from_list([f"{EMA_ARGS}.initial", EMA_INITIAL / num_processes])
    torch.manual_seed(0)
    model = detectron2.modeling.build_model(cfg).train()
    if cfg.MODEL.META_ARCHITECTURE == "FocalRetinaNet":
        model = model.double()
    return model


def train(model: torch.nn.Module, images: list) -> list:
    """Per step of SGD, the losses as floats and the gradient of every parameter.

    The gradient of DistributedDataParallel is the mean over the processes.
    """
    optimizer = torch.optim.SGD(model.parameters(), lr=2e-3)
    steps = []
    for _ in range(NUM_STEPS):
        with EventStorage():
            losses = model(images)
        optimizer.zero_grad()
        sum(losses.values()).backward()
        grads = {
            name.replace("module.", "", 1): p.grad.clone() for name, p in model.named_parameters()
        }
        steps.append(
            {"losses": {name: loss.item() for name, loss in losses.items()}, "grads": grads}
        )
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
    return steps


def _train_in_process(rank: int, cfgs: dict, folder) -> None:
    """Train every case in two processes, and then in four; the same processes do both."""
    torch.set_num_threads(1)
    for num_processes in NUM_PROCESSES:
        if rank >= num_processes:
            continue
        init_method = f"file://{folder / f'init_{num_processes}'}"
        distributed.init_process_group(
            "gloo", init_method=init_method, rank=rank, world_size=num_processes
        )
        num_images = len(make_images()) // num_processes
        images = make_images()[rank * num_images : (rank + 1) * num_images]
        run = {}
        for case, cfg in cfgs.items():
            # As Detectron2's trainer does it, which leaves the buffers of each process alone.
            model = DistributedDataParallel(build(cfg, num_processes), broadcast_buffers=False)
            run[case] = train(model, images)
            for step in run[case]:
                # The gradients are the same in all processes, and large.
                if rank > 0:
                    del step["grads"]
        torch.save(run, folder / f"{num_processes}_{rank}.pth")
        distributed.destroy_process_group()


def _load_run(num_processes: int, folder) -> dict:
    """Case -> steps, with the mean over processes of the losses."""
    files = [folder / f"{num_processes}_{rank}.pth" for rank in range(num_processes)]
    run, *others = [torch.load(file) for file in files]
    for case, steps in run.items():
        for i, step in enumerate(steps):
            losses = [step["losses"], *(other[case][i]["losses"] for other in others)]
            step["losses"] = {
                name: sum(x[name] for x in losses) / num_processes for name in losses[0]
            }
    return run


@pytest.fixture(scope="module")
def cached_runs() -> dict:
    return {}


@pytest.fixture
def runs(cached_runs, make_cfg, tmp_path) -> dict:
    """Number of processes -> case -> steps; trained once for all tests."""
    if not cached_runs:
        cfgs = {
            case: make_cfg(*WITHOUT_BATCH_NORM, *x)
            for case, x in {**CASES, **PER_PROCESS_CASES}.items()
        }
        cfgs["Faster R-CNN"] = make_two_stage_cfg(FASTER, TWO_STAGE)
        run_ranks(_train_in_process, cfgs, tmp_path, num_processes=max(NUM_PROCESSES))
        cached_runs.update(
            {num_processes: _load_run(num_processes, tmp_path) for num_processes in NUM_PROCESSES}
        )
        cached_runs[1] = {case: train(build(cfg), make_images()) for case, cfg in cfgs.items()}
    return cached_runs


@pytest.mark.parametrize("num_processes", NUM_PROCESSES)
@pytest.mark.parametrize("case", CASES)
def test_any_number_of_processes_gives_the_same_gradients(runs, case, num_processes):
    for want, got in zip(runs[1][case], runs[num_processes][case]):
        assert got["losses"] == pytest.approx(want["losses"], rel=1e-5)
        assert got["grads"].keys() == want["grads"].keys()
        for name, grad in want["grads"].items():
            largest = grad.abs().max()
            assert largest > 0, f"{name} takes no part"
            assert (got["grads"][name] - grad).abs().max() <= 1e-5 * largest, name


@pytest.mark.parametrize("num_processes", NUM_PROCESSES)
def test_two_stages_have_the_same_gradients(runs, num_processes):
    """In float32, as NMS asks for it: only the first step, before rounding changes proposals.

    It also moves a few activations over the kink of a ReLU, and with them the gradients below.
    """
    want, got = (runs[x]["Faster R-CNN"][0] for x in (1, num_processes))
    assert got["losses"] == pytest.approx(want["losses"], rel=1e-5)
    for name, grad in want["grads"].items():
        assert (got["grads"][name] - grad).abs().max() <= 1e-2 * grad.abs().max(), name


def test_the_batch_has_an_image_without_positives(make_cfg):
    images = make_images()
    model = build(make_cfg(*WITHOUT_BATCH_NORM))
    anchors = model.anchor_generator([torch.zeros(1, 1, s, s) for s in (16, 8, 4, 2, 1)])
    labels, _ = model.label_anchors(anchors, [x["instances"] for x in images])
    assert [bool(((x >= 0) & (x < 5)).any()) for x in labels] == [True, True, False, False]
    assert [len(x["instances"]) for x in images] == [3, 1, 1, 0]


def test_detectron2s_average_depends_on_the_processes(runs):
    one, two = (runs[num_processes]["EMAPosCount"][0]["losses"] for num_processes in (1, 2))
    # The first of two processes has all positives, so its divisor is that of one process, and the
    # second has no box loss: the mean over the two is half. The second's classification loss is
    # divided by 0.9 * 100 + 0.1 * 1 only.
    assert two["loss_box_reg"] == pytest.approx(one["loss_box_reg"] / 2)
    assert two["loss_cls"] < 0.75 * one["loss_cls"]
