"""Signals, dead processes and data workers: what a real run saves, and that nothing is left."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from focal_det.engine.processes import run_in_processes
from tests.engine.runs import (
    TWO,
    get_descendants,
    get_env,
    get_last_iteration,
    is_running,
    kill_all,
    obey_signals,
    read_command,
    read_iterations,
    run_to_end,
    start_train,
    wait_for_checkpoint,
    wait_until,
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

ENDLESS = {
    "SEED": 3,
    "DATASETS__TEST": [],
    "SOLVER__MAX_ITER": 100_000,
    "SOLVER__CHECKPOINT_PERIOD": 5,
}
SECONDS_TO_END = 10
SLOW_EVALUATION = {
    "DATASETS__TEST": ["copy"],
    "TEST__EVAL_PERIOD": 7,
    "INPUT__MIN_SIZE_TEST": 1200,
    "INPUT__MAX_SIZE_TEST": 9999,
}


class Run:
    """A real run; its processes are gone after the test."""

    def __init__(self, digits):
        self.digits = digits
        self.out = digits.folder / "out"
        self.log = digits.folder / "train.log"
        self.pids = []

    def start(self, *words, **keys):
        config = self.digits.write_config(**{**ENDLESS, **keys})
        self.process = start_train(config, *words)
        self.pids = [self.process.pid]
        return config

    def find_processes(self):
        self.pids = [self.process.pid, *get_descendants(self.process.pid)]
        return self.pids[1:]

    def wait_for_end(self):
        """Wait until no process of the run is left; returns its exit code."""
        assert wait_until(lambda: not any(map(is_running, self.pids)), SECONDS_TO_END)
        return self.process.wait(1)


@pytest.fixture
def run(digits):
    run = Run(digits)
    yield run
    kill_all([*run.pids, *(y for x in run.pids for y in get_descendants(x))])


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGHUP, marks=pytest.mark.slow),
        pytest.param(signal.SIGUSR1, marks=pytest.mark.slow),
    ],
)
def test_all_processes_end_with_the_first(number, run):
    run.start(*TWO, DATALOADER__NUM_WORKERS=1)
    wait_for_checkpoint(run.out, run.process)
    # Two that train, each with a data worker; multiprocessing may have started one of its own.
    assert len(run.find_processes()) >= 4
    run.process.send_signal(number)
    expected = -number if number == signal.SIGKILL else 128 + number
    assert run.wait_for_end() == expected


@pytest.mark.slow
def test_signal_to_one_process_stops_all(run):
    run.start(*TWO)
    wait_for_checkpoint(run.out, run.process)
    others = [x for x in run.find_processes() if "spawn_main" in read_command(x)]
    os.kill(others[-1], signal.SIGTERM)
    assert run.wait_for_end() == 128 + signal.SIGTERM
    assert read_iterations(run.out)[-1] == get_last_iteration(run.out)


@pytest.mark.slow
def test_signal_to_a_whole_group_leaves_the_data_workers(run):
    """As from Ctrl+C or a cluster: the run needs the workers to complete its step."""
    run.start(DATALOADER__NUM_WORKERS=2)
    wait_for_checkpoint(run.out, run.process)
    for pid in [*run.find_processes(), run.process.pid]:
        os.kill(pid, signal.SIGTERM)
    assert run.wait_for_end() == 128 + signal.SIGTERM
    assert "data worker" not in run.log.read_text()


@pytest.mark.slow
def test_second_signal_stops_at_once(run):
    # The backward pass takes many seconds, in which Python calls no handler.
    run.start(SOLVER__IMS_PER_BATCH=4, INPUT__MIN_SIZE_TRAIN=[1200], INPUT__MAX_SIZE_TRAIN=9999)
    assert wait_until(lambda: "loss_cls of the first batch is" in run.log.read_text())
    run.process.send_signal(signal.SIGTERM)
    time.sleep(1.2)
    assert run.process.poll() is None
    run.process.send_signal(signal.SIGTERM)
    start = time.monotonic()
    assert run.wait_for_end() == 128 + signal.SIGTERM
    assert time.monotonic() - start < 2 and not (run.out / "last_checkpoint").exists()


def test_signal_in_an_evaluation_stops_it_with_a_checkpoint(run):
    """Without one, the steps since the last checkpoint would be lost."""
    run.start(**SLOW_EVALUATION)
    assert wait_until(lambda: "Start inference on" in run.log.read_text())
    run.process.send_signal(signal.SIGTERM)
    assert run.wait_for_end() == 128 + signal.SIGTERM
    assert get_last_iteration(run.out) == read_iterations(run.out)[-1] == 6


@pytest.mark.slow
def test_signal_in_an_evaluation_of_two_processes(run):
    """The first one saves and stops; the other waits for it, in vain."""
    run.start(*TWO, **SLOW_EVALUATION)
    assert wait_until(lambda: "Start inference on" in run.log.read_text())
    run.process.send_signal(signal.SIGTERM)
    assert run.wait_for_end() == 128 + signal.SIGTERM
    assert get_last_iteration(run.out) == 6


def test_error_in_an_evaluation_saves_the_steps_before(run):
    for image in sorted(run.digits.images.iterdir())[-1:]:
        image.write_bytes(b"")
    run.digits.content["images"] = run.digits.content["images"][:-1]
    (train := run.digits.folder / "train.json").write_text(json.dumps(run.digits.content))
    block = {"format": "coco", "images": str(run.digits.images)}
    run.start(
        MODEL__FOCAL_DET__DATASETS=[
            {"name": "train", "json": str(train), **block},
            {"name": "copy", "json": str(run.digits.json), **block},
        ],
        DATASETS__TRAIN=["train"],
        DATASETS__TEST=["copy"],
        TEST__EVAL_PERIOD=7,
    )
    assert wait_until(lambda: run.process.poll() is not None)
    assert run.wait_for_end() == 1
    assert get_last_iteration(run.out) == read_iterations(run.out)[-1] == 6


@pytest.mark.slow
def test_signal_to_a_worker_of_an_evaluation_is_not_for_the_run(run):
    """It is forked while the run listens, and must not pass the signal on."""
    run.start(**SLOW_EVALUATION, DATALOADER__NUM_WORKERS=1)
    assert wait_until(lambda: "Start inference on" in run.log.read_text())
    assert wait_until(lambda: len(get_descendants(run.process.pid)) >= 2)
    workers = run.find_processes()
    os.kill(workers[-1], signal.SIGTERM)
    time.sleep(1.5)
    # For the run itself, this is the first signal, not the second.
    if run.process.poll() is None:
        run.process.send_signal(signal.SIGTERM)
    assert run.wait_for_end() in (1, 128 + signal.SIGTERM)
    assert get_last_iteration(run.out) == 6


@pytest.mark.slow
def test_signal_while_processes_start(run):
    run.start(*TWO)
    assert wait_until(lambda: len(get_descendants(run.process.pid)) >= 2)
    run.find_processes()
    run.process.send_signal(signal.SIGTERM)
    assert run.wait_for_end() == 128 + signal.SIGTERM


def test_signal_before_the_last_process_is_started():
    program = """
import os, signal, time
from focal_det.engine.processes import run_in_processes

def arguments():
    yield (600,)
    os.kill(os.getpid(), signal.SIGTERM)
    yield (600,)

run_in_processes(time.sleep, arguments())
"""
    result = subprocess.run([sys.executable, "-c", program], env=get_env(), timeout=60)
    assert result.returncode == 128 + signal.SIGTERM


def test_hangup_of_a_closed_terminal_saves(run):
    """Nothing can be written to the terminal any more."""
    ours, theirs = os.openpty()
    config = run.digits.write_config(**ENDLESS)
    command = [sys.executable, "-m", "focal_det.tools", "train", "--no-check", "--config-file"]
    run.process = subprocess.Popen(
        [*command, str(config)],
        env=get_env(),
        stdout=subprocess.DEVNULL,
        stderr=theirs,
        preexec_fn=obey_signals,
    )
    run.pids = [run.process.pid]
    os.close(theirs)
    assert wait_until((run.out / "last_checkpoint").is_file)
    os.close(ours)
    run.process.send_signal(signal.SIGHUP)
    assert run.wait_for_end() == 128 + signal.SIGHUP
    assert get_last_iteration(run.out) == read_iterations(run.out)[-1]


@pytest.mark.slow
def test_signal_in_the_last_evaluation_keeps_the_last_metrics(run):
    config = run.start(
        DATASETS__TEST=["copy"],
        SOLVER__MAX_ITER=3,
        INPUT__MIN_SIZE_TEST=1200,
        INPUT__MAX_SIZE_TEST=9999,
    )
    assert wait_until(lambda: "Start inference on" in run.log.read_text())
    run.process.send_signal(signal.SIGTERM)
    assert run.wait_for_end() == 128 + signal.SIGTERM
    assert (run.out / "last_checkpoint").read_text() == "model_final.pth"
    assert read_iterations(run.out)[-1] == 2
    # Only the evaluation is left.
    run_to_end(config, "--resume", "INPUT.MIN_SIZE_TEST", "64")
    lines = [json.loads(x) for x in (run.out / "metrics.json").read_text().splitlines()]
    assert any("bbox/AP" in x for x in lines)


def stop_first(rank):
    """As in an evaluation: the first process gets a signal alone, and another waits for it."""
    if rank == 0:
        sys.exit(128 + signal.SIGTERM)
    time.sleep(1)
    raise ConnectionError("the first process is gone")


def test_stop_of_the_first_process_is_no_error_of_another():
    with pytest.raises(SystemExit) as end:
        run_in_processes(stop_first, [(0,), (1,)])
    assert end.value.code == 128 + signal.SIGTERM


@pytest.mark.parametrize("words", [[], pytest.param(TWO, marks=pytest.mark.slow)])
def test_killed_data_worker(words, run):
    run.start(*words, DATALOADER__NUM_WORKERS=2)
    wait_for_checkpoint(run.out, run.process)
    workers = [x for x in run.find_processes() if not get_descendants(x)]
    os.kill(workers[-1], signal.SIGKILL)
    assert wait_until(lambda: run.process.poll() is not None, 30)
    assert run.wait_for_end() == 1
    last = run.log.read_text().splitlines()[-1]
    assert f"data worker {workers[-1]} was killed by SIGKILL, which the system sends" in last
    assert "The last complete step is saved; continue with --resume" in last
    assert read_iterations(run.out)[-1] == get_last_iteration(run.out)


@pytest.mark.slow
def test_killed_process_of_two(run):
    run.start(*TWO)
    wait_for_checkpoint(run.out, run.process)
    others = [x for x in run.find_processes() if "spawn_main" in read_command(x)]
    os.kill(others[-1], signal.SIGKILL)
    assert run.wait_for_end() == 1
    last = run.log.read_text().splitlines()[-1]
    assert "of this run was killed by SIGKILL" in last and "Continue with --resume" in last


@pytest.mark.slow
def test_error_of_a_process_reaches_the_first(run):
    file = run.digits.folder / "w.pth"
    file.write_text("no weights")
    run.start(*TWO, MODEL__WEIGHTS=str(file))
    assert wait_until(lambda: run.process.poll() is not None)
    assert run.wait_for_end() == 2
    last = run.log.read_text().splitlines()[-1]
    assert last == f"focal-det train: MODEL.WEIGHTS {file}: it is a text file that begins with " + (
        "'no weights'"
    )


def test_image_that_fails_saves_the_steps_before(run):
    run.start(SOLVER__IMS_PER_BATCH=1)
    wait_for_checkpoint(run.out, run.process)
    for image in run.digits.images.iterdir():
        image.write_bytes(b"")
    assert wait_until(lambda: run.process.poll() is not None)
    assert run.wait_for_end() == 1
    assert "ValueError: Image " in run.log.read_text().splitlines()[-1]
    assert read_iterations(run.out)[-1] == get_last_iteration(run.out)


@pytest.mark.slow
def test_second_run_in_the_same_folder_is_refused(run):
    config = run.start()
    wait_for_checkpoint(run.out, run.process)
    for words in (["--resume"], ["--overwrite"]):
        second = start_train(config, *words)
        assert second.wait(60) == 2
        message = f"OUTPUT_DIR {run.out} is in use by another run (process {run.process.pid} on "
        assert message in run.log.read_text()
    assert run.process.poll() is None
    run.process.send_signal(signal.SIGTERM)
    assert run.wait_for_end() == 128 + signal.SIGTERM
