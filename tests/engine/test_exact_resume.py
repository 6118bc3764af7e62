"""A run that is interrupted and resumed ends with the weights of the run that is not."""

import random
import signal
import time

import numpy as np
import pytest
import torch

from focal_det.engine.trainer import Trainer
from tests.engine.runs import (
    KEYS,
    NUM_ITERS,
    TWO,
    find_differences,
    get_descendants,
    get_last_iteration,
    kill_all,
    read_iterations,
    read_weights,
    run_to_end,
    start_train,
    wait_for_checkpoint,
)

slow = pytest.mark.slow


@pytest.mark.parametrize(
    "num_processes, num_workers, number",
    [
        (1, 2, signal.SIGTERM),
        pytest.param(2, 0, signal.SIGINT, marks=slow),
        pytest.param(1, 0, signal.SIGKILL, marks=slow),
        pytest.param(1, 0, signal.SIGTERM, marks=slow),
        pytest.param(1, 0, signal.SIGINT, marks=slow),
        pytest.param(1, 2, signal.SIGKILL, marks=slow),
        pytest.param(1, 2, signal.SIGINT, marks=slow),
        pytest.param(2, 0, signal.SIGKILL, marks=slow),
        pytest.param(2, 0, signal.SIGTERM, marks=slow),
        pytest.param(2, 2, signal.SIGKILL, marks=slow),
        pytest.param(2, 2, signal.SIGTERM, marks=slow),
        pytest.param(2, 2, signal.SIGINT, marks=slow),
    ],
)
def test_interrupted_run_ends_with_the_same_weights(
    num_processes, num_workers, number, digits, reference
):
    words = TWO if num_processes == 2 else []
    config = digits.write_config(DATALOADER__NUM_WORKERS=num_workers, **KEYS)
    out = digits.folder / "out"
    process = start_train(config, *words)
    wait_for_checkpoint(out, process)
    time.sleep(0.3)
    pids = [process.pid, *get_descendants(process.pid)]
    process.send_signal(number)
    code = process.wait(60)
    if number == signal.SIGKILL:
        assert code == -number
        kill_all(pids)
    else:
        assert code == 128 + number
        assert (out / "last_checkpoint").read_text() != "model_final.pth"
        assert read_iterations(out)[-1] == get_last_iteration(out)
    run_to_end(config, "--resume", *words)
    assert find_differences(read_weights(out), reference(num_processes)) == []
    iterations = read_iterations(out)
    assert iterations == sorted(set(iterations)) and iterations[-1] == NUM_ITERS - 1


def test_evaluation_leaves_the_random_generators(digits, monkeypatch):
    """A resumed run does not repeat it, and would draw other numbers from then on."""
    from detectron2.engine import DefaultTrainer

    def draw(*args):
        return random.random(), np.random.rand(), torch.rand(())

    monkeypatch.setattr(DefaultTrainer, "test", classmethod(draw))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = Trainer.test(None, None)
    assert draw() == expected
