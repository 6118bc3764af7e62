"""A run that is interrupted and resumed ends with the weights of an uninterrupted one."""

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
    wait_until,
)
from tests.faults.copies import DigitsCopy

slow = pytest.mark.slow


@slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("num_processes", [1, 2])
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


PRECISE_BN = {
    **KEYS,
    "MODEL__RESNETS__NORM": "BN",
    "TEST__EVAL_PERIOD": NUM_ITERS // 2,
    "TEST__PRECISE_BN__ENABLED": True,
    "TEST__PRECISE_BN__NUM_ITER": 30,
    "SOLVER__CHECKPOINT_PERIOD": 1000,
}


@pytest.fixture(scope="module")
def whole_precise_bn(tmp_path_factory):
    """The weights of a run with PRECISE_BN that was not interrupted."""
    digits = DigitsCopy(tmp_path_factory.mktemp("whole"))
    run_to_end(digits.write_config(**PRECISE_BN))
    return read_weights(digits.folder / "out")


def start_precise_bn(digits, nth_update=1):
    """Start a run, and wait until it computes the statistics for the `nth_update`-th time."""
    config = digits.write_config(**PRECISE_BN)
    process = start_train(config)
    log = digits.folder / "train.log"
    assert wait_until(lambda: log.read_text().count("Running precise-BN for") == nth_update)
    return config, process


# The second update is that after the last step.
@slow
@pytest.mark.parametrize("nth_update", [1, 2])
def test_run_interrupted_in_precise_bn_ends_with_the_same_weights(
    nth_update, digits, whole_precise_bn
):
    config, process = start_precise_bn(digits, nth_update)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    out = digits.folder / "out"
    assert get_last_iteration(out) == nth_update * NUM_ITERS // 2 - 1
    assert not (out / "model_final.pth").exists()
    run_to_end(config, "--resume")
    assert find_differences(read_weights(out), whole_precise_bn) == []


@slow
def test_image_that_precise_bn_cannot_load_loses_no_step(digits, whole_precise_bn):
    config, process = start_precise_bn(digits)
    image = next(digits.images.iterdir())
    content = image.read_bytes()
    image.write_bytes(b"")
    assert process.wait(60) == 1
    out = digits.folder / "out"
    assert get_last_iteration(out) == NUM_ITERS // 2 - 1
    image.write_bytes(content)
    run_to_end(config, "--resume")
    assert find_differences(read_weights(out), whole_precise_bn) == []


@slow
def test_processes_stop_together_in_precise_bn(digits):
    config = digits.write_config(**PRECISE_BN)
    process = start_train(config, *TWO)
    log = digits.folder / "train.log"
    assert wait_until(lambda: "Running precise-BN for" in log.read_text())
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert get_last_iteration(digits.folder / "out") == NUM_ITERS // 2 - 1


@slow
def test_last_step_without_final_model_gets_one(digits):
    """As after a kill between the write of the last checkpoint and that of the final model."""
    config = digits.write_config(**{**KEYS, "SOLVER__CHECKPOINT_PERIOD": NUM_ITERS})
    run_to_end(config)
    out = digits.folder / "out"
    expected = read_weights(out)
    (out / "model_final.pth").unlink()
    (out / "last_checkpoint").write_text(f"model_{NUM_ITERS - 1:07d}.pth")
    run_to_end(config, "--resume")
    assert find_differences(read_weights(out), expected) == []


def test_evaluation_leaves_the_random_generators(digits, monkeypatch):
    """A resumed run does not repeat the evaluation; otherwise it would draw other numbers."""
    from detectron2.engine import DefaultTrainer

    def draw(*args):
        return random.random(), np.random.rand(), torch.rand(())

    monkeypatch.setattr(DefaultTrainer, "test", classmethod(draw))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    expected = Trainer.test(None, None)
    assert draw() == expected
