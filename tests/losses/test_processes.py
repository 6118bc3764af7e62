"""One batch shared by 1, 2 and 4 processes, around the whole model: which losses and gradients stay the same."""

import pytest
import torch
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from focal_det.registry import CLS_LOSS_REGISTRY, NORMALIZER_REGISTRY
from tests.conftest import make_batch

NORMALIZER = "MODEL.FOCAL_DET.NORMALIZER.NAME"
EMA_ARGS = "MODEL.FOCAL_DET.NORMALIZER.ARGS.GlobalEMAPosCount"
# What must not depend on the number of processes: name of a case -> its overrides of the config.
CASES = {
    "GlobalPosCount": [NORMALIZER, "GlobalPosCount"],
    # A short memory that starts near the counts of the batch, so that every step depends on the ones before.
    "GlobalEMAPosCount": [NORMALIZER, "GlobalEMAPosCount", f"{EMA_ARGS}.momentum", 0.5],
    "PerImagePosCount": [NORMALIZER, "PerImagePosCount"],
    "Constant": [NORMALIZER, "Constant"],
    # Losses that gather statistics over the processes.
    "GHMCLoss": [NORMALIZER, "GlobalPosCount", "MODEL.FOCAL_DET.CLS_LOSS.NAME", "GHMCLoss"],
    "EqualizedFocalLoss": [
        NORMALIZER,
        "GlobalPosCount",
        "MODEL.FOCAL_DET.CLS_LOSS.NAME",
        "EqualizedFocalLoss",
    ],
}
# What does, as in Detectron2.
PER_PROCESS_CASES = {"EMAPosCount": [NORMALIZER, "EMAPosCount"]}
# Average before the first step over all processes; the argument is that of each.
EMA_INITIAL = 12.0
# Batch norm would make a difference that is not the loss's.
WITHOUT_BATCH_NORM = ["MODEL.RESNETS.NORM", "FrozenBN"]
NUM_STEPS = 3
# Besides one.
NUM_PROCESSES = [2, 4]


def make_images() -> list:
    """Objects on several levels, one object, an object without area that no anchor is positive for, no object.

    The first of two processes has all positives of the batch; of four, one has no positives and one no objects.
    """
    return make_batch(
        [[16, 16, 52, 52], [30, 40, 110, 120], [0, 0, 128, 128]],
        [[70, 60, 100, 90]],
        [[10, 10, 10, 10]],
        [],
    )


def build(cfg, num_processes: int = 1) -> torch.nn.Module:
    """The model of a case, with the same weights in every process; float64, so that only a real difference is one."""
    import detectron2.modeling

    cfg = cfg.clone()
    cfg.merge_from_list([f"{EMA_ARGS}.initial", EMA_INITIAL / num_processes])
    torch.manual_seed(0)
    return detectron2.modeling.build_model(cfg).double().train()


def train(model: torch.nn.Module, images: list) -> list:
    """Per step of SGD, the losses as floats and the gradient of every parameter (DistributedDataParallel's is the mean)."""
    optimizer = torch.optim.SGD(model.parameters(), lr=2e-3)
    steps = []
    for _ in range(NUM_STEPS):
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
    """Train every case in two processes, and then in four; the same processes do both, as starting them takes longest.

    In a new process, importing this file has imported tests.conftest, which sets Detectron2's environment module.
    """
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
        # As Detectron2's trainer does it, which leaves the buffers of each process alone.
        models = {
            case: DistributedDataParallel(build(cfg, num_processes), broadcast_buffers=False)
            for case, cfg in cfgs.items()
        }
        torch.save(
            {case: train(model, images) for case, model in models.items()},
            folder / f"{num_processes}_{rank}.pth",
        )
        distributed.destroy_process_group()


def _load_run(num_processes: int, folder) -> dict:
    """Case -> steps, with the mean over processes of the losses; the gradients are the same in all of them."""
    run, *others = [
        torch.load(folder / f"{num_processes}_{rank}.pth") for rank in range(num_processes)
    ]
    for case, steps in run.items():
        for i, step in enumerate(steps):
            losses = [x["losses"] for x in (step, *(other[case][i] for other in others))]
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
        multiprocessing.spawn(_train_in_process, (cfgs, tmp_path), nprocs=max(NUM_PROCESSES))
        cached_runs.update(
            {num_processes: _load_run(num_processes, tmp_path) for num_processes in NUM_PROCESSES}
        )
        cached_runs[1] = {case: train(build(cfg), make_images()) for case, cfg in cfgs.items()}
    return cached_runs


@pytest.mark.parametrize("num_processes", NUM_PROCESSES)
@pytest.mark.parametrize("case", CASES)
def test_loss_and_gradients_do_not_depend_on_the_number_of_processes(runs, case, num_processes):
    for want, got in zip(runs[1][case], runs[num_processes][case]):
        assert got["losses"] == pytest.approx(want["losses"], rel=1e-5)
        assert got["grads"].keys() == want["grads"].keys()
        for name, grad in want["grads"].items():
            largest = grad.abs().max()
            assert largest > 0, f"{name} takes no part"
            assert (got["grads"][name] - grad).abs().max() <= 1e-5 * largest, name


def test_every_normalizer_and_every_loss_with_state_is_a_case():
    with_state = {name for name, loss in CLS_LOSS_REGISTRY if loss.stateful}
    assert {name for name, _ in NORMALIZER_REGISTRY} | with_state <= {*CASES, *PER_PROCESS_CASES}


def test_the_batch_has_an_image_without_positives_and_one_without_objects(make_cfg):
    images = make_images()
    model = build(make_cfg(*WITHOUT_BATCH_NORM))
    anchors = model.anchor_generator([torch.zeros(1, 1, s, s) for s in (16, 8, 4, 2, 1)])
    labels, _ = model.label_anchors(anchors, [x["instances"] for x in images])
    assert [bool(((x >= 0) & (x < 5)).any()) for x in labels] == [True, True, False, False]
    assert [len(x["instances"]) for x in images] == [3, 1, 1, 0]


def test_the_average_of_detectron2_makes_the_loss_depend_on_the_number_of_processes(runs):
    one, two = (runs[num_processes]["EMAPosCount"][0]["losses"] for num_processes in (1, 2))
    # The first of two processes has all positives, so its divisor is that of one process, and the second has no box loss: the mean
    # over the two is half. The second's classification loss is divided by 0.9 * 100 + 0.1 * 1 only.
    assert two["loss_box_reg"] == pytest.approx(one["loss_box_reg"] / 2)
    assert two["loss_cls"] < 0.75 * one["loss_cls"]
