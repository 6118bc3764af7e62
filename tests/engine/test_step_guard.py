"""StepGuard, its file and the checkpointer, beyond the faults of tests/faults: clipped, frozen and huge gradients, other files."""

import itertools
import json

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from torch.utils.data import SequentialSampler

from focal_det.checkpoint.checkpointer import HealthyCheckpointer
from focal_det.engine.step_guard import DivergedError, StepGuard
from focal_det.engine.trainer import LaterSampler
from focal_det.model_zoo import get_config_file
from focal_det.tools.reproduce import main as reproduce
from focal_det.tools.train import main as train
from tests.conftest import make_batch


@pytest.fixture
def train_steps(make_cfg, tmp_path):
    """A function that trains a small model for some steps with `change` as hook of the gradient of `cls_score`."""

    def run(change, *overrides, num_steps=2):
        cfg = make_cfg("OUTPUT_DIR", str(tmp_path), "SOLVER.BASE_LR", 1e-30, *overrides)
        model = build_model(cfg).train()
        batches = [make_batch([[16, 16, 52, 52]], [[30, 40, 110, 120]]) for _ in range(num_steps)]
        trainer = SimpleTrainer(model, batches, build_optimizer(cfg, model))
        guard = StepGuard(cfg)
        trainer.register_hooks([guard])
        model.head.cls_score.weight.register_hook(lambda grad: change(grad, trainer.iter))
        trainer.train(0, num_steps)
        return guard

    return run


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
def test_a_gradient_that_is_not_finite_stops_with_every_optimizer(overrides, train_steps):
    def spoil(grad, iteration):
        grad = grad.clone()
        grad[0, 0, 0, 0] = float("-inf") if iteration == 1 else 0.0
        return grad

    with pytest.raises(
        DivergedError,
        match=r"Iteration 1: a gradient is not finite(?s:.)*1 parameters .*head\.cls_score\.weight",
    ):
        train_steps(spoil, *overrides)


@pytest.mark.parametrize(
    ("has_checkpoint", "how"),
    [(True, "--resume, with a lower"), (False, "no checkpoint yet; start again with")],
)
def test_the_message_says_how_to_go_on(has_checkpoint, how, train_steps, tmp_path):
    if has_checkpoint:
        (tmp_path / "last_checkpoint").write_text("model_0000001.pth")
    with pytest.raises(DivergedError, match=how):
        train_steps(lambda grad, _: grad * float("nan"))


def test_a_huge_gradient_is_not_told_to_be_infinite(train_steps):
    """The squares of its norm are."""
    guard = train_steps(lambda grad, _: grad * 1e30 + 1e30)
    assert guard.find_divergence() is None  # the learning rate was tiny


def test_hooks_are_gone_after_the_training(train_steps):
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


def test_a_first_batch_without_objects_makes_no_later_loss_a_divergence(make_cfg, tmp_path):
    """Its loss is next to nothing, and every other one a thousand times that."""
    cfg = make_cfg(
        "OUTPUT_DIR", str(tmp_path), "SOLVER.BASE_LR", 1e-5, "MODEL.RETINANET.PRIOR_PROB", 1e-4
    )
    trainer = make_trainer(cfg, [make_batch([]), make_batch([[16, 16, 52, 52]])])
    trainer.train(0, 2)
    (guard,) = trainer._hooks
    assert 1000 * guard._first_loss < guard._last_loss and guard.find_divergence() is None


def test_a_training_that_has_diverged_for_long_is_stopped(make_cfg, tmp_path):
    """Its loss is finite, and with clipped gradients it may stay so for ever."""
    cfg = make_cfg("OUTPUT_DIR", str(tmp_path), "SOLVER.BASE_LR", 1e-30)
    trainer = make_trainer(cfg, itertools.repeat(make_batch([[16, 16, 52, 52]])))
    losses = trainer.model.losses
    trainer.model.losses = lambda *args: {
        k: v * (1e4 if trainer.iter >= 5 else 1) for k, v in losses(*args).items()
    }
    with pytest.raises(
        DivergedError,
        match=r"Iteration 35: the training has diverged: .* at the start, for 31 iterations in a row",
    ):
        trainer.train(0, 100)
    assert (tmp_path / "nonfinite_step_0000035_rank0.pth").is_file()


def test_steps_that_a_loss_scaler_leaves_out_are_counted(make_cfg, tmp_path):
    """In mixed precision, a gradient that is never finite trains nothing, and nothing else would say so."""
    cfg = make_cfg("OUTPUT_DIR", str(tmp_path), "SOLVER.BASE_LR", 1e-6)
    trainer = make_trainer(cfg, itertools.repeat(make_batch([[16, 16, 52, 52]])))
    scaler = torch.amp.GradScaler("cpu")

    def run_step():
        trainer.optimizer.zero_grad()
        scaler.scale(sum(trainer.model(next(trainer._data_loader_iter)).values())).backward()
        if trainer.iter in (3, 4, 5, 20) or trainer.iter > 30:  # single ones are as it should be
            trainer.model.head.cls_score.weight.grad.fill_(float("inf"))
        scaler.step(trainer.optimizer)
        scaler.update()

    trainer.run_step = run_step
    with pytest.raises(
        DivergedError,
        match=r"Iteration 61: gradients have not been finite for 31 iterations in a row(?s:.)*cls_score",
    ):
        trainer.train(0, 100)


@pytest.mark.parametrize("is_lost", [True, False])
def test_a_step_that_is_left_out_is_looked_at(is_lost, make_cfg, tmp_path):
    """Its loss may have spoilt it, which stops at once; or gradients are gathered, which may take long."""
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


class Constant(torch.nn.Module):
    """A model without buffers, whose loss asks nothing of its parameters."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(2))

    def forward(self, batch):
        return {
            "loss": torch.tensor(float("nan") if batch[0]["image_id"] else 1.0, requires_grad=True)
        }


def test_a_model_without_gradients_and_buffers_is_guarded_too(make_cfg, tmp_path):
    model = Constant()
    batches = [[{"image": torch.zeros(3, 8, 8), "image_id": i}] for i in range(2)]
    trainer = SimpleTrainer(model, batches, torch.optim.SGD(model.parameters(), 0.1))
    trainer.register_hooks([StepGuard(make_cfg("OUTPUT_DIR", str(tmp_path)))])
    trainer._write_metrics = lambda *args: None  # which has a look of its own
    with pytest.raises(DivergedError, match="Iteration 1: loss is nan"):
        trainer.train(0, 2)


@pytest.mark.parametrize("kind", ["missing", "text", "checkpoint"])
def test_reproduce_refuses_another_file(kind, tmp_path, capsys):
    file = tmp_path / "file.pth"
    if kind == "text":
        file.write_text("a: b\n")
    elif kind == "checkpoint":
        torch.save({"model": {}}, file)
    with pytest.raises(SystemExit):
        reproduce([str(file)])
    message = "No such file" if kind == "missing" else "is no step that focal-det train has kept"
    output = capsys.readouterr().err
    assert message in output and str(file) in output


def test_reproduce_prints_the_step(train_steps, tmp_path, capsys):
    with pytest.raises(DivergedError):
        train_steps(lambda grad, _: grad * float("nan"))
    file = str(tmp_path / "nonfinite_step_0000000_rank0.pth")
    assert reproduce([file]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "iteration 0: all is finite" and lines[1].startswith(
        "  loss_cls: "
    )  # the hook spoilt it
    assert "  parameters whose gradient is not finite: 0" in lines
    assert reproduce([file, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["iteration"] == 0 and set(printed["losses"]) == {"loss_cls", "loss_box_reg"}
    assert printed["nonfinite_gradients"] == [] and set(printed["largest"]) == {
        "|logit|",
        "|delta|",
    }


@pytest.mark.parametrize("divergence", [None, "it has diverged"])
def test_a_diverged_checkpoint_is_kept_apart(divergence, tmp_path):
    checkpointer = HealthyCheckpointer(torch.nn.Linear(2, 2), str(tmp_path))
    checkpointer.save("model_0000001")
    checkpointer.find_divergence = lambda: divergence
    checkpointer.save("model_0000003")
    expected = {
        "last_checkpoint",
        "model_0000001.pth",
        "diverged_model_0000003.pth" if divergence else "model_0000003.pth",
    }
    assert {x.name for x in tmp_path.iterdir()} == expected
    assert (tmp_path / "last_checkpoint").read_text() == (
        "model_0000001.pth" if divergence else "model_0000003.pth"
    )


def test_a_sampler_goes_on_later():
    sampler = LaterSampler(SequentialSampler(range(9)))
    assert list(itertools.islice(sampler, 3)) == [0, 1, 2]
    sampler.num_skipped = 6
    assert list(sampler) == [6, 7, 8]


@pytest.mark.parametrize("flags", [[], ["--no-check"], ["--eval-only"]])
def test_train_names_a_wrong_key_without_a_traceback(flags, capsys):
    with pytest.raises(SystemExit):
        train(
            [
                *flags,
                "--config-file",
                get_config_file("digits/focal_retinanet_tiny.yaml"),
                "SOLVER.BASE_LRR",
                "1",
            ]
        )
    error = capsys.readouterr().err
    assert "focal-det train: error: SOLVER.BASE_LRR" in error and "Did you mean 'BASE_LR'?" in error


def test_train_runs_the_code_of_a_config_only_if_asked(tmp_path, capsys):
    config, made = tmp_path / "config.yaml", tmp_path / "made"
    config.write_text(
        f"MODEL:\n  WEIGHTS: !!python/object/apply:os.makedirs ['{made}']\nSOLVER: {{BASE_LRR: 1}}\n"
    )
    for words, runs in ([], False), (["--unsafe-yaml"], True):
        with pytest.raises(SystemExit):
            train([*words, "--config-file", str(config)])
        assert (
            made.exists() == runs
            and ("runs code when it is read" in capsys.readouterr().err) != runs
        )
