"""A guarded training loop."""

import pytest
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer

from focal_det.engine.step_guard import StepGuard
from tests.conftest import make_batch


@pytest.fixture
def train_steps(make_cfg, tmp_path):
    """A function that trains a small model with `change` as the gradient hook of `cls_score`."""

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
