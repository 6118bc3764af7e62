"""A run that is interrupted twenty times ends like the run that never was."""

import collections
import os
import random
import signal
import sys
import time

import pytest

from tests.engine.runs import (
    KEYS,
    TWO,
    find_differences,
    get_descendants,
    kill_all,
    read_iterations,
    read_weights,
    run_to_end,
    start_train,
    wait_until,
)
from tests.faults.copies import DigitsCopy

NUM_INTERRUPTS = 20
LONG = {**KEYS, "SOLVER__MAX_ITER": 400, "SOLVER__BASE_LR": 0.003, "DATALOADER__NUM_WORKERS": 1}


def interrupt(kind, process):
    """Interrupt a run of two processes with a data worker each."""
    ranks = [x for x in get_descendants(process.pid) if get_descendants(x)]
    workers = [x for rank in ranks for x in get_descendants(rank)]
    if kind == "signal":
        process.send_signal(random.choice([signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]))
    elif kind == "kill":
        process.kill()
    else:
        victims = {"rank": ranks, "worker": workers}[kind]
        os.kill(random.choice(victims), signal.SIGKILL)


def wait_for_start(number, log, process):
    """Wait until a run has started to train for the `number`th time."""
    assert wait_until(
        lambda: log.read_text().count("Starting training") >= number or process.poll() is not None
    )
    assert process.poll() is None, log.read_text()[-3000:]


def wait_for_another_checkpoint(out, process):
    before = set(out.glob("model_*.pth"))
    assert wait_until(lambda: set(out.glob("model_*.pth")) - before)
    assert process.poll() is None


@pytest.mark.slow
@pytest.mark.longest
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_run_survives_twenty_interruptions(tmp_path, clean_catalog, record_property):
    folders = [tmp_path / "reference", tmp_path / "interrupted"]
    for folder in folders:
        folder.mkdir()
    reference, digits = map(DigitsCopy, folders)
    run_to_end(reference.write_config(**LONG), *TWO, seconds=600)

    config = digits.write_config(**LONG)
    log = digits.folder / "train.log"
    counts = collections.Counter()
    start_time = time.monotonic()
    kinds = ["signal", "kill", "rank", "worker"] * (NUM_INTERRUPTS // 4)
    random.seed(time.time_ns())
    random.shuffle(kinds)
    for number, kind in enumerate(kinds):
        process = start_train(config, *TWO, *(["--resume"] if number else []))
        wait_for_start(number + 1, log, process)
        # Mostly after some progress, now and then before the first step.
        if random.random() < 0.8:
            wait_for_another_checkpoint(digits.folder / "out", process)
        time.sleep(random.uniform(0, 1))
        pids = [process.pid, *get_descendants(process.pid)]
        interrupt(kind, process)
        code = process.wait(60)
        kill_all(pids)
        assert code != 0
        counts[kind] += 1
    run_to_end(config, "--resume", *TWO, seconds=600)

    differences = find_differences(
        read_weights(digits.folder / "out"), read_weights(reference.folder / "out")
    )
    assert differences == []
    iterations = read_iterations(digits.folder / "out")
    assert iterations == sorted(set(iterations))
    starts = [int(x.rsplit(" ", 1)[1]) for x in log.read_text().splitlines() if "Starting tr" in x]
    assert starts == sorted(starts) and len(set(starts)) > NUM_INTERRUPTS / 2
    record_property(
        "soak",
        {
            "interruptions": dict(counts),
            "iterations": LONG["SOLVER__MAX_ITER"],
            "starts": starts,
            "tensors_that_differ": len(differences),
            "minutes": round((time.monotonic() - start_time) / 60, 1),
        },
    )
