"""Processes that torchrun starts join one run, and continue it after a restart."""

import importlib.util
import os
import signal
import sys
from pathlib import Path

import pytest

from tests.engine.runs import (
    KEYS,
    find_differences,
    find_free_port,
    get_descendants,
    get_last_iteration,
    is_running,
    read_iterations,
    read_weights,
    start,
    wait_for_checkpoint,
    wait_until,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

TORCHRUN = [sys.executable, "-m", "torch.distributed.run"]
ONE_MACHINE = ["--standalone", "--nproc_per_node", "2"]


def start_torchrun(config, *options, words=(), **variables):
    train = [
        "-m",
        "focal_det.tools.train",
        "--num-gpus",
        "0",
        "--no-check",
        "--config-file",
        config,
    ]
    log = config.with_name("train.log")
    return start([*TORCHRUN, *options, *train, *words], log, **variables)


@pytest.mark.slow
def test_killed_process_is_started_again_and_goes_on(digits, reference, processes):
    config = digits.write_config(**KEYS)
    out = digits.folder / "out"
    process = start_torchrun(config, *ONE_MACHINE, "--max-restarts", "1")
    processes.append(process)
    wait_for_checkpoint(out, process)
    ranks = get_descendants(process.pid)
    os.kill(ranks[-1], signal.SIGKILL)
    assert process.wait(120) == 0
    assert "continuing exactly after iteration" in config.with_name("train.log").read_text()
    assert find_differences(read_weights(out), reference(2)) == []
    assert read_iterations(out) == sorted(set(read_iterations(out)))


def start_two_machines(config, *options, **variables):
    """Two agents on this machine, which meet at a port, stand for two machines."""
    options = [*options, "--nnodes", "2", "--nproc_per_node", "1", "--rdzv_backend", "c10d"]
    options += ["--rdzv_id", "test", "--rdzv_endpoint", f"localhost:{find_free_port()}"]
    return [start_torchrun(config, *options, **variables) for _ in range(2)]


@pytest.mark.slow
def test_two_machines_join_one_run(digits, reference, processes):
    processes += start_two_machines(digits.write_config(**KEYS))
    assert [x.wait(120) for x in processes] == [0, 0]
    assert find_differences(read_weights(digits.folder / "out"), reference(2)) == []


@pytest.mark.slow
def test_two_machines_go_on_although_one_counts_no_restart(digits, reference, processes):
    """One machine's process is killed; the other's hangs, and its restart is not counted."""
    config = digits.write_config(**KEYS)
    processes += start_two_machines(
        config, "--max-restarts", "3", TORCH_ELASTIC_SHUTDOWN_TIMEOUT="3"
    )
    wait_for_checkpoint(digits.folder / "out", processes[0])
    first, second = (get_descendants(x.pid)[0] for x in processes)
    os.kill(first, signal.SIGSTOP)
    os.kill(second, signal.SIGKILL)
    assert [x.wait(180) for x in processes] == [0, 0]
    assert find_differences(read_weights(digits.folder / "out"), reference(2)) == []


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_processes_end_with_torchrun(number, digits, processes):
    config = digits.write_config(**{**KEYS, "SOLVER__MAX_ITER": 100_000})
    out = digits.folder / "out"
    process = start_torchrun(config, *ONE_MACHINE)
    processes.append(process)
    wait_for_checkpoint(out, process)
    ranks = get_descendants(process.pid)
    process.send_signal(number)
    assert wait_until(lambda: not any(map(is_running, [process.pid, *ranks])), 10)
    if number == signal.SIGTERM:
        assert get_last_iteration(out) == read_iterations(out)[-1]


@pytest.mark.slow
def test_refusal_ends_all_processes(digits, processes):
    config = digits.write_config(**KEYS)
    process = start_torchrun(config, *ONE_MACHINE, words=["SOLVER.BASE_LRR", "1"])
    processes.append(process)
    assert process.wait(60) == 1  # torchrun's own code
    log = config.with_name("train.log").read_text()
    # Our line comes first; torchrun's own report follows.
    assert log.count("Did you mean 'BASE_LR'?") == 1
    assert log.startswith("focal-det train: SOLVER.BASE_LRR: Unknown key")


needs_tools = pytest.mark.skipif(
    importlib.util.find_spec("tools") is None,
    reason="this Detectron2 is installed without its tools/ scripts",
)


@pytest.mark.slow
@needs_tools
def test_script_of_detectron2_is_refused(digits, processes):
    config = digits.write_config(**KEYS)
    # The process that says why is the last to start.
    delay = "import os, time\nif os.environ.get('RANK') == '0':\n    time.sleep(5)\n"
    (digits.folder / "sitecustomize.py").write_text(delay)
    path = os.pathsep.join([str(digits.folder), os.environ.get("PYTHONPATH", "")])
    script = Path(importlib.util.find_spec("tools").submodule_search_locations[0]) / "train_net.py"
    process = start(
        [*TORCHRUN, *ONE_MACHINE, script, "--config-file", config],
        digits.folder / "train.log",
        PYTHONPATH=path,
    )
    processes.append(process)
    assert process.wait(60) == 1
    log = (digits.folder / "train.log").read_text()
    assert log.count("Detectron2's train_net.py does not support torchrun: its 2 processes") == 1
    assert "torchrun ... -m focal_det.tools.train" in log and not (digits.folder / "out").exists()
