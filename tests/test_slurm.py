"""A training run as a job: it trains the same, and continues when the cluster requeues it."""

import os
import signal
import sys
import time

import pytest

from focal_det.slurm import TrainJob, make_executor, submit_train
from focal_det.tools.train import main
from tests.engine.runs import (
    KEYS,
    NUM_ITERS,
    find_differences,
    get_descendants,
    get_last_iteration,
    kill_all,
    read_iterations,
    read_weights,
    run_to_end,
    wait_until,
)
from tests.fake_slurm import FakeSlurm

pytest.importorskip("submitit")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
slow = pytest.mark.slow


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    """A cluster; the job that a test submits ends with the test."""
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    cluster = FakeSlurm(tmp_path / "cluster")
    cluster.install(monkeypatch)
    yield cluster
    cluster.end()


def submit(config, *words, slurm=("timeout_min=60",)):
    words = ["--config-file", str(config), "--no-check", *words]
    main([*words, "--launcher", "slurm", "--slurm", *slurm])


def wait_for_first_checkpoint(digits, log):
    tag = digits.folder / "out" / "last_checkpoint"
    assert wait_until(tag.is_file), log.read_text()[-3000:]


def check_exact(digits, weights):
    out = digits.folder / "out"
    assert find_differences(read_weights(out), weights) == []
    iterations = read_iterations(out)
    assert iterations == sorted(set(iterations)) and iterations[-1] == NUM_ITERS - 1


@slow
def test_job_trains_as_the_command_does(digits, reference, slurm, capsys):
    config = digits.write_config(**KEYS)
    submit(config)
    log = digits.folder / "out" / "slurm" / "77_0_log.out"
    assert capsys.readouterr().out == f"submitted job 77; log: {log}\n"
    assert slurm.wait_for_end() == 0
    check_exact(digits, reference(1))
    options = slurm.read_options()
    assert options["time"] == "60" and options["signal"].startswith("USR2@")
    assert options["open-mode"] == "append" and "requeue" in options


@slow
def test_job_that_is_announced_its_end_goes_on_exactly(digits, reference, slurm):
    submit(digits.write_config(**KEYS))
    log = digits.folder / "out" / "slurm" / "77_0_log.out"
    wait_for_first_checkpoint(digits, log)
    time.sleep(0.3)
    slurm.signal_tasks(signal.SIGUSR2)
    assert slurm.wait_for_end() == 0
    text = log.read_text()
    assert "SIGTERM: stopping after this step" in text
    assert "continuing exactly after iteration" in text
    check_exact(digits, reference(1))


@slow
def test_sigterm_of_a_preemption_saves_and_waits(digits, reference, slurm):
    """As without PreemptParameters=send_user_signal: Slurm requeues the job after a grace time."""
    submit(digits.write_config(**KEYS))
    log = digits.folder / "out" / "slurm" / "77_0_log.out"
    wait_for_first_checkpoint(digits, log)
    slurm.signal_tasks(signal.SIGTERM)
    assert wait_until(lambda: "waiting for the cluster to end this job" in log.read_text())
    assert read_iterations(digits.folder / "out")[-1] == get_last_iteration(digits.folder / "out")
    slurm.kill_node()
    assert slurm.wait_for_end() == 0
    check_exact(digits, reference(1))


@slow
def test_job_of_a_failed_machine_goes_on(digits, reference, slurm):
    submit(digits.write_config(**KEYS))
    wait_for_first_checkpoint(digits, digits.folder / "out" / "slurm" / "77_0_log.out")
    slurm.kill_node()
    assert slurm.wait_for_end() == 0
    check_exact(digits, reference(1))


@slow
def test_tasks_join_one_run_and_go_on(digits, reference, slurm):
    submit(digits.write_config(**KEYS), "--num-gpus", "0", slurm=["tasks_per_node=2"])
    log = digits.folder / "out" / "slurm" / "77_0_log.out"
    wait_for_first_checkpoint(digits, log)
    time.sleep(0.3)
    slurm.signal_tasks(signal.SIGUSR2)
    assert slurm.wait_for_end() == 0
    assert "continuing exactly after iteration" in log.read_text()
    check_exact(digits, reference(2))


@slow
def test_overwritten_run_is_not_continued(digits, reference, slurm):
    """The signal comes before the job has removed the earlier run."""
    run_to_end(digits.write_config(**{**KEYS, "SEED": 4}))
    submit(digits.write_config(**KEYS), "--overw")
    assert wait_until(lambda: (slurm.folder / "srun.pid").is_file())
    pid = int((slurm.folder / "srun.pid").read_text())
    assert wait_until(lambda: len(get_descendants(pid)) > 1)
    slurm.signal_tasks(signal.SIGUSR2)
    assert slurm.wait_for_end() == 0
    check_exact(digits, reference(1))


def test_refused_run_ends_the_job_with_its_code(digits, slurm):
    config = digits.write_config(**KEYS, MODEL__WEIGHTS=str(digits.folder / "none.pth"))
    submit(config)
    slurm.wait_for_end()
    text = (digits.folder / "out" / "slurm" / "77_0_log.out").read_text()
    assert "none.pth" in text and "Traceback" not in text
    assert slurm.wait_for_end() == 2


@slow
def test_job_of_submitit_on_this_machine_goes_on(digits, reference):
    config = digits.write_config(**KEYS)
    executor = make_executor(digits.folder / "jobs", ["timeout_min=10"], "local")
    job = executor.submit(TrainJob(("--no-check", "--config-file", str(config))))
    pid = job._process.pid
    try:
        wait_for_first_checkpoint(digits, job.paths.stdout)
        # Not by submitit's `_interrupt`, which also ends the process that would restart the job.
        for process in get_descendants(pid):
            os.kill(process, signal.SIGUSR2)
        assert wait_until(job.done)
    finally:
        kill_all([pid, *get_descendants(pid)])
    assert "Requeued job" in job.paths.stdout.read_text() + job.paths.stderr.read_text()
    check_exact(digits, reference(1))


@pytest.fixture
def read_job(slurm, digits, monkeypatch):
    """A function that runs a command and returns the job that it submits."""
    jobs = []

    def submit_nothing(job, folder, words):
        jobs.append((job, words))
        return "1", folder

    monkeypatch.setattr("focal_det.tools._launcher.submit_train", submit_nothing)

    def read(*words):
        main([*map(str, words)])
        return jobs[-1]

    return read


@pytest.mark.parametrize(
    "words, flags, others, parameters",
    [
        ("--launcher slurm SEED 1", (), "SEED 1", ""),
        ("--launcher=slurm --resume SEED 1", ("--resume",), "SEED 1", ""),
        ("--over --launch slurm --slurm a=1 b=[2]", ("--overwrite",), "", "a=1 b=[2]"),
        ("--launcher slurm --slurm a=1 SEED 1", (), "SEED 1", "a=1"),
        ("--slurm a=1 --launcher slurm --eval-only", ("--eval-only",), "", "a=1"),
        ("--num-gpus 2 --launcher slurm SEED -1", (), "--num-gpus 2 SEED -1", ""),
    ],
)
def test_job_has_the_words_of_the_command(words, flags, others, parameters, digits, read_job):
    file = str(digits.write_config())
    job, given = read_job("--config-file", file, *words.split())
    assert job == TrainJob(("--config-file", file, *others.split()), flags)
    assert given == parameters.split()


@pytest.mark.parametrize(
    "words, message",
    [
        (["SOLVER.BASE_LRR", "1"], "Did you mean 'BASE_LR'?"),
        (["--num-machines", "2"], "--slurm nodes=2"),
        (["--overwrite", "--resume"], "it cannot be combined with --resume or --eval-only"),
        (["--slurm", "slurm_partitio=a"], "--slurm: "),
        (["--slurm", "nodes=a"], "--slurm: "),
    ],
)
def test_refusals_before_the_job(words, message, digits, slurm, capsys):
    config = str(digits.write_config())
    with pytest.raises(SystemExit) as stop:
        main(["--config-file", config, "--launcher", "slurm", *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_refusal_of_slurm_is_shown(digits, slurm, capsys):
    failing = "#!/bin/sh\necho 'sbatch: error: invalid partition' >&2\nexit 1\n"
    (slurm.bin / "sbatch").write_text(failing)
    with pytest.raises(SystemExit) as stop:
        submit(digits.write_config())
    assert stop.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last == "focal-det train: --launcher slurm: sbatch: error: invalid partition"


def test_machine_without_slurm(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no Slurm on this machine"):
        submit_train(TrainJob(()), tmp_path, [])


def test_flags_after_a_restart(monkeypatch):
    def get_flags(*flags):
        return TrainJob((), flags).checkpoint().function.flags

    assert get_flags("--overwrite") == ("--overwrite",)  # the run has not started
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert get_flags("--overwrite") == get_flags() == ("--resume",)
    assert get_flags("--eval-only") == ("--eval-only",)
