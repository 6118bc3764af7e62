"""Faults of processes and their checkpoints: real signals, kills and damage on real runs."""

import importlib.util
import io
import os
import shutil
import signal
import sys
import time
import zipfile
from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate

from focal_det.model_zoo import get_config_file
from tests.engine.runs import (
    KEYS,
    TWO,
    find_differences,
    get_descendants,
    get_last_iteration,
    is_running,
    kill_all,
    read_command,
    read_iterations,
    read_number,
    read_weights,
    run_to_end,
    start,
    start_train,
    wait_for_checkpoint,
    wait_until,
)
from tests.engine.test_torchrun import ONE_MACHINE, start_torchrun
from tests.faults.copies import DigitsCopy, run_train
from tests.faults.test_run_faults import NOT_EVALUATED, get_start, start_stock

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="reads /proc"),
    pytest.mark.skipif(
        importlib.util.find_spec("tools") is None,
        reason="this Detectron2 is installed without its tools/ scripts",
    ),
]
ENDLESS = {**KEYS, "SOLVER__MAX_ITER": 100_000}


@pytest.fixture
def other(tmp_path):
    """A second copy of the data set, for Detectron2's own script."""
    folder = tmp_path / "stock"
    folder.mkdir()
    return DigitsCopy(folder)


def start_script(config, *words):
    """Detectron2's own train_net.py."""
    command = [sys.executable, "-m", "tools.train_net", "--config-file", config, *words]
    return start(command, config.with_name("train.log"))


def interrupt(start_it, config, number, processes, *words):
    """Start a run, send it a signal after its first checkpoint, and return its exit code."""
    process = start_it(config, *words)
    processes.append(process)
    wait_for_checkpoint(config.parent / "out", process)
    time.sleep(0.3)
    processes_below = get_descendants(process.pid)
    process.send_signal(number)
    code = process.wait(60)
    if number == signal.SIGKILL:
        kill_all(processes_below)
    return code


@pytest.mark.slow
def test_row_1_killed_and_resumed(digits, other, processes, reference, fault):
    config = digits.write_config(**KEYS)
    assert interrupt(start_train, config, signal.SIGKILL, processes) == -signal.SIGKILL
    run_to_end(config, "--resume")
    assert find_differences(read_weights(digits.folder / "out"), reference(1)) == []

    config = other.write_config(**KEYS)
    assert interrupt(start_script, config, signal.SIGKILL, processes) == -signal.SIGKILL
    assert start_script(config, "--resume").wait(120) == 0
    resumed = read_weights(other.folder / "out")
    shutil.rmtree(other.folder / "out")
    assert start_script(config).wait(120) == 0
    differences = find_differences(resumed, read_weights(other.folder / "out"))
    assert differences
    fault(
        1,
        "`kill -9`, then `--resume`",
        stock="SILENT: another run: it starts again at the first image",
        ours="on a CPU, bit for bit the run that was not interrupted",
        seen=f"{len(differences)} of {len(resumed)} tensors differ",
    )


# Saves checkpoints of 100 MB under one name until it is killed.
SAVE = """
import pathlib, sys, torch
from {module} import {name}
model = torch.nn.Sequential(*(torch.nn.Linear(400, 400) for _ in range(150)))
checkpointer = {name}(model, sys.argv[1])
while True:
    checkpointer.save("model_0000000", iteration=0)
    file = pathlib.Path(sys.argv[1], "size")
    if not file.exists():
        file.write_text(str(file.with_name("model_0000000.pth").stat().st_size))
"""


def kill_in_a_write(kind, folder, processes):
    """Kill a process that saves checkpoints, in the middle of a write after its first."""
    folder.mkdir()
    code = SAVE.format(module=kind.__module__, name=kind.__name__)
    process = start([sys.executable, "-c", code, folder], folder / "log")
    processes.append(process)
    assert wait_until(lambda: read_number(folder / "size") > 0)
    size = read_number(folder / "size")

    def is_half_written():
        # Stopped first, so that the write cannot end before the kill.
        process.send_signal(signal.SIGSTOP)
        sizes = [x.stat().st_size for x in folder.glob("*model_0000000.pth*")]
        if any(0 < x < size for x in sizes):
            return True
        process.send_signal(signal.SIGCONT)
        return False

    assert wait_until(is_half_written)
    process.kill()
    process.wait()
    return folder / "model_0000000.pth"


@pytest.mark.slow
def test_row_2_killed_in_a_write(tmp_path, processes, fault):
    from focal_det.checkpoint.checkpointer import HealthyCheckpointer

    file = kill_in_a_write(HealthyCheckpointer, tmp_path / "ours", processes)
    assert torch.load(file, weights_only=True)["iteration"] == 0
    file = kill_in_a_write(DetectionCheckpointer, tmp_path / "stock", processes)
    with pytest.raises(Exception) as error:
        torch.load(file, weights_only=True)
    fault(
        2,
        "`kill -9` while a checkpoint is written",
        stock="half a file under the final name; the good one of that name is lost",
        ours="the previous file stays until the new one is complete",
        seen=f"{file.stat().st_size / 1e6:.0f} of 96 MB, {type(error.value).__name__} on reading",
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """OUTPUT_DIR of a run of two iterations, with a checkpoint after each."""
    digits = DigitsCopy(tmp_path_factory.mktemp("trained"))
    run_to_end(digits.write_config(SOLVER__CHECKPOINT_PERIOD=1, **NOT_EVALUATED))
    return digits.folder / "out"


def cut(data):
    return data[: len(data) // 2]


def empty(data):
    return b""


def flip(data):
    """Flip one bit of a weight, in the middle of the largest tensor."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        member = max(archive.infolist(), key=lambda x: x.file_size)
    position = member.header_offset + member.file_size // 2
    return data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :]


@pytest.mark.parametrize(
    "row, damage, what, stock",
    [
        (3, cut, "last checkpoint cut off", "stops with an error about a zip archive"),
        (4, empty, "last checkpoint of 0 bytes", "stops: EOFError"),
        (5, flip, "one bit of a weight flipped", "SILENT: keeps training with it"),
    ],
)
def test_rows_3_to_5_damaged_checkpoint(row, damage, what, stock, trained, digits, fault):
    config = digits.write_config(SOLVER__CHECKPOINT_PERIOD=1, **NOT_EVALUATED)
    out = digits.folder / "out"
    shutil.copytree(trained, out)
    (out / "model_final.pth").unlink()
    (out / "last_checkpoint").write_text("model_0000001.pth")
    file = out / "model_0000001.pth"
    file.write_bytes(damage(file.read_bytes()))
    try:
        assert start_stock(digits, resume=True).start_iter == 2
        seen = "goes on from iteration 2"
    except Exception as error:
        seen = f"{type(error).__name__}: {error}".splitlines()[0][:60]
    assert seen.startswith("goes on") == stock.startswith("SILENT")
    run_train(config, "--resume", "SOLVER.MAX_ITER", "3")
    assert get_start(digits) == 1
    assert f"{file} is skipped: it is " in (out / "log.txt").read_text()
    fault(row, what, stock=stock, ours="resumes from the valid one before it", seen=seen)


@pytest.mark.parametrize(
    "row, number",
    [(16, signal.SIGTERM), pytest.param(17, signal.SIGINT, marks=pytest.mark.slow)],
)
def test_rows_16_and_17_signal(row, number, digits, other, processes, fault):
    out = digits.folder / "out"
    code = interrupt(start_train, digits.write_config(**ENDLESS), number, processes)
    assert code == 128 + number
    assert get_last_iteration(out) == read_iterations(out)[-1]
    interrupt(start_script, other.write_config(**ENDLESS), number, processes)
    lost = describe_lost(other.folder / "out")
    fault(
        row,
        f"{number.name}",
        stock="nothing is saved since the last checkpoint",
        ours=f"a checkpoint after the running step, exit code {128 + number}",
        seen=lost,
    )


def describe_lost(out):
    """What a run has lost since its last checkpoint, which must be a periodic one."""
    last = get_last_iteration(out)
    assert (last + 1) % KEYS["SOLVER__CHECKPOINT_PERIOD"] == 0
    file = out / "metrics.json"
    if not file.is_file() or not file.read_text():
        return "no new checkpoint, and no metrics"
    return f"no new checkpoint, {max(0, read_iterations(out)[-1] - last)} iterations lost"


# Two processes as Detectron2's launcher starts them; on a CPU, each is a run of its own.
STOCK_RANKS = """
import os
import sys
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer
from torch import multiprocessing
from focal_det.data.catalog import register_datasets

def work(rank):
    cfg = get_cfg()
    cfg.merge_from_file(sys.argv[1])
    cfg.OUTPUT_DIR = f"{sys.argv[2]}/rank{rank}"
    register_datasets(cfg.MODEL.FOCAL_DET.DATASETS, source="")
    os.makedirs(cfg.OUTPUT_DIR)
    DefaultTrainer(cfg).train()

if __name__ == "__main__":
    multiprocessing.spawn(work, nprocs=2, daemon=False)
"""


def start_stock_ranks(config):
    script = config.with_name("ranks.py")
    script.write_text(STOCK_RANKS)
    return start([sys.executable, script, config, config.parent], config.with_name("train.log"))


@pytest.mark.slow
def test_row_18_signal_to_the_first_process(digits, other, processes, fault):
    process = start_train(digits.write_config(**ENDLESS), *TWO)
    processes.append(process)
    wait_for_checkpoint(digits.folder / "out", process)
    below = get_descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    assert wait_until(lambda: not any(map(is_running, [process.pid, *below])), 10)
    assert process.wait(1) == 128 + signal.SIGTERM

    process = start_stock_ranks(other.write_config(**ENDLESS))
    processes.append(process)
    for rank in range(2):
        wait_for_checkpoint(other.folder / f"rank{rank}", process)
    below = get_descendants(process.pid)
    process.send_signal(signal.SIGTERM)
    process.wait(60)
    time.sleep(5)
    left = [x for x in below if is_running(x)]
    kill_all(below)
    lost = describe_lost(other.folder / "rank0")
    fault(
        18,
        "SIGTERM to the first of several processes",
        stock="the others end, too; nothing is saved since the last checkpoint",
        ours="passed on; a checkpoint after the running step, and all end",
        seen=f"{len(left)} processes after 5 s; {lost}",
    )


@pytest.mark.slow
def test_row_19_killed_process_of_several(digits, other, processes, reference, fault):
    config = digits.write_config(**KEYS)
    process = start_torchrun(config, *ONE_MACHINE, "--max-restarts", "1")
    processes.append(process)
    wait_for_checkpoint(digits.folder / "out", process)
    os.kill(get_descendants(process.pid)[-1], signal.SIGKILL)
    assert process.wait(120) == 0
    assert find_differences(read_weights(digits.folder / "out"), reference(2)) == []

    process = start_stock_ranks(other.write_config(**ENDLESS))
    processes.append(process)
    for rank in range(2):
        wait_for_checkpoint(other.folder / f"rank{rank}", process)
    ranks = [x for x in get_descendants(process.pid) if "spawn_main" in read_command(x)]
    os.kill(ranks[-1], signal.SIGKILL)
    code = process.wait(60)
    fault(
        19,
        "SIGKILL of one of several processes",
        stock="all stop",
        ours="all stop; under torchrun, they start again and continue exactly",
        seen=f"exit code {code}",
    )


@pytest.mark.slow
def test_row_20_killed_data_worker(digits, other, processes, fault):
    ends = []
    for copy, start_it in ((digits, start_train), (other, start_script)):
        process = start_it(copy.write_config(**ENDLESS, DATALOADER__NUM_WORKERS=2))
        processes.append(process)
        wait_for_checkpoint(copy.folder / "out", process)
        time.sleep(0.3)
        os.kill(get_descendants(process.pid)[-1], signal.SIGKILL)
        code = process.wait(60)
        ends.append((code, (copy.folder / "train.log").read_text().splitlines()[-1]))
    (code, line), (_, stock_line) = ends
    assert code == 1
    assert "was killed by SIGKILL, which the system sends when memory runs out" in line
    assert get_last_iteration(digits.folder / "out") == read_iterations(digits.folder / "out")[-1]
    lost = describe_lost(other.folder / "out")
    fault(
        20,
        "killed data worker",
        stock="stops; nothing is saved since the last checkpoint",
        ours="a checkpoint after the last complete step; names signal and cause",
        seen=f"{lost}: {stock_line[:60]}",
    )


LAZY = sorted(Path(get_config_file("Base-FocalRetinaNet.yaml")).parent.rglob("*.py"))


def test_row_43_constant_scheduler(fault):
    """Detectron2's hook also asks for the learning rate after the last iteration."""
    from fvcore.common.param_scheduler import ConstantParamScheduler

    assert len(LAZY) >= 3
    for file in LAZY:
        scheduler = instantiate(LazyConfig.load(str(file)).lr_multiplier)
        assert 0 < scheduler(1.0) < 1
    with pytest.raises(RuntimeError) as error:
        ConstantParamScheduler(1.0)(1.0)
    fault(
        43,
        "ConstantParamScheduler in a Lazy config",
        stock="stops after the last iteration, without a final model",
        ours="no shipped config has one",
        seen=f"{error.value}",
    )
