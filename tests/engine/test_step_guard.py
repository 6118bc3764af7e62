"""StepGuard beyond the faults of tests/faults: clipped, frozen, huge and skipped gradients."""

import itertools

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from torch import distributed

from focal_det.engine.step_guard import DivergedError, StepGuard
from tests.conftest import make_batch, run_ranks


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("SOLVER.CLIP_GRADIENTS.ENABLED", True),
        ("SOLVER.CLIP_GRADIENTS.ENABLED", True, "SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "norm"),
        ("MODEL.BACKBONE.FREEZE_AT", 2),
    ],
    ids=["plain", "clipped by value", "clipped by norm", "frozen"],
)
def test_nonfinite_gradient_stops_every_optimizer(overrides, train_steps):
    def spoil(grad, iteration):
        grad = grad.clone()
        grad[0, 0, 0, 0] = float("-inf") if iteration == 1 else 0.0
        return grad

    with pytest.raises(
        DivergedError,
        match=r"Iteration 1: a gradient is non-finite(?s:.)*1 parameters .*head\.cls_score\.weight",
    ):
        train_steps(spoil, *overrides)


@pytest.mark.parametrize(
    ("has_checkpoint", "how"),
    [(True, "--resume, with a lower"), (False, "no checkpoint yet; start again with")],
)
def test_message_says_how_to_continue(has_checkpoint, how, train_steps, tmp_path):
    if has_checkpoint:
        (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    with pytest.raises(DivergedError, match=how):
        train_steps(lambda grad, _: grad * float("nan"))


def test_huge_gradient_is_not_infinite(train_steps):
    """Its norm overflows, but none of its values does."""
    guard = train_steps(lambda grad, _: grad * 1e30 + 1e30)
    assert guard.find_divergence() is None  # the learning rate was tiny


def test_hooks_are_removed_after_training(train_steps):
    guard = train_steps(lambda grad, _: grad)
    model = guard.trainer.model
    assert not model._forward_hooks and not model._forward_pre_hooks
    guard.check = None  # must not be called any more
    guard.trainer.optimizer.step()


def make_trainer(cfg, batches):
    model = build_model(cfg).train()
    trainer = SimpleTrainer(model, batches, build_optimizer(cfg, model))
    trainer.register_hooks([StepGuard(cfg)])
    return trainer


def test_first_batch_without_objects_is_no_reference(make_cfg, tmp_path):
    """Its loss is close to 0, and any other loss is a thousand times that."""
    cfg = make_cfg(
        "OUTPUT_DIR", str(tmp_path), "SOLVER.BASE_LR", 1e-5, "MODEL.RETINANET.PRIOR_PROB", 1e-4
    )
    trainer = make_trainer(cfg, [make_batch([]), make_batch([[16, 16, 52, 52]])])
    trainer.train(0, 2)
    (guard,) = trainer._hooks
    progress = guard.progress
    assert 1000 * progress.first_loss < progress.last_loss and guard.find_divergence() is None


def test_run_that_has_diverged_for_long_is_stopped(make_cfg, tmp_path):
    """Its loss is finite, and with clipped gradients it may stay so forever."""
    cfg = make_cfg("OUTPUT_DIR", str(tmp_path), "SOLVER.BASE_LR", 1e-30)
    trainer = make_trainer(cfg, itertools.repeat(make_batch([[16, 16, 52, 52]])))
    losses = trainer.model.losses
    trainer.model.losses = lambda *args: {
        k: v * (1e4 if trainer.iter >= 5 else 1) for k, v in losses(*args).items()
    }
    with pytest.raises(
        DivergedError,
        match=r"Iteration 35: the run has diverged: .* at the start, for 31 iterations in a row",
    ):
        trainer.train(0, 100)
    assert (tmp_path / "nonfinite_step_0000035_rank0.pth").is_file()


def test_steps_skipped_by_a_loss_scaler_are_counted(make_cfg, tmp_path):
    """In mixed precision, a run whose gradients are never finite would go on without training."""
    cfg = make_cfg("OUTPUT_DIR", str(tmp_path), "SOLVER.BASE_LR", 1e-6)
    trainer = make_trainer(cfg, itertools.repeat(make_batch([[16, 16, 52, 52]])))
    scaler = torch.amp.GradScaler("cpu")

    def run_step():
        trainer.optimizer.zero_grad()
        scaler.scale(sum(trainer.model(next(trainer._data_loader_iter)).values())).backward()
        if trainer.iter in (3, 4, 5, 20) or trainer.iter > 30:  # single skips are normal
            trainer.model.head.cls_score.weight.grad.fill_(float("inf"))
        scaler.step(trainer.optimizer)
        scaler.update()

    trainer.run_step = run_step
    with pytest.raises(
        DivergedError,
        match=r"Iteration 61: gradients have been non-finite for 31 iterations(?s:.)*cls_score",
    ):
        trainer.train(0, 100)


@pytest.mark.parametrize("is_lost", [True, False])
def test_loss_of_a_skipped_step_is_checked(is_lost, make_cfg, tmp_path):
    """A NaN loss stops the run at once; gradients summed over many iterations do not."""
    cfg = make_cfg("OUTPUT_DIR", str(tmp_path))
    trainer = make_trainer(cfg, itertools.repeat(make_batch([[16, 16, 52, 52]])))

    def run_step():
        losses = trainer.model(next(trainer._data_loader_iter))
        sum(losses.values()).backward()
        if is_lost and trainer.iter == 2:
            trainer._hooks[0]._losses["loss_cls"] = torch.tensor(float("nan"))

    trainer.run_step = run_step
    if is_lost:
        with pytest.raises(DivergedError, match="Iteration 2: loss_cls is nan"):
            trainer.train(0, 40)
    else:
        trainer.train(0, 40)


def skip_steps_in_process(rank, cfg, folder):
    """One of three processes in mixed precision; the loss of the second one is NaN."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=3
    )
    trainer = make_trainer(cfg, itertools.repeat(make_batch([[16, 16, 52, 52]])))
    (guard,) = trainer._hooks

    def run_step():
        sum(trainer.model(next(trainer._data_loader_iter)).values()).backward()
        if trainer.iter < 2:
            return
        if rank == 0:  # Detectron2 has gathered the losses
            guard.stop_for(FloatingPointError("of Detectron2"))
        if rank == 1:
            guard._losses["loss_cls"] = torch.tensor(float("nan"))

    trainer.run_step = run_step
    with pytest.raises(DivergedError, match="Iteration 2: "):
        trainer.train(0, 4)


def test_lost_loss_of_a_skipped_step_stops_all_processes(make_cfg, tmp_path):
    """Otherwise those whose loss is finite would wait for the others in the next step."""
    cfg = make_cfg("OUTPUT_DIR", str(tmp_path), "SOLVER.AMP.ENABLED", True)
    run_ranks(skip_steps_in_process, cfg, tmp_path, num_processes=3)
    assert len(list(tmp_path.glob("nonfinite_step_0000002_rank*.pth"))) == 3


class Constant(torch.nn.Module):
    """A model without buffers, whose loss does not depend on its parameters."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def forward(self, batch):
        return {
            "loss": torch.tensor(float("nan") if batch[0]["image_id"] else 1.0, requires_grad=True)
        }


def test_model_without_gradients_and_buffers_is_guarded(make_cfg, tmp_path):
    model = Constant()
    batches = [[{"image": torch.zeros(3, 8, 8), "image_id": i}] for i in range(2)]
    trainer = SimpleTrainer(model, batches, torch.optim.SGD(model.parameters(), 0.1))
    trainer.register_hooks([StepGuard(make_cfg("OUTPUT_DIR", str(tmp_path)))])
    trainer._write_metrics = lambda *args: None  # it would check the losses itself
    with pytest.raises(DivergedError, match="Iteration 1: loss is nan"):
        trainer.train(0, 2)
