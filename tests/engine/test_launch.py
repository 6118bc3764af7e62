"""What `focal-det train` refuses before it starts, and how it explains what stopped a run."""

import errno
import pickle
from argparse import Namespace

import pytest
import torch

from focal_det.checkpoint.weights_file import WeightsError
from focal_det.engine import launch
from focal_det.engine.data_workers import DataWorkerError
from focal_det.engine.step_guard import DivergedError
from focal_det.files import DiskFullError
from focal_det.model_zoo import get_config_file
from focal_det.tools.train import main as train
from tests.faults.copies import refuse_train

CONFIG = get_config_file("digits/focal_retinanet_tiny.yaml")


@pytest.mark.parametrize("flags", [[], ["--no-check"], ["--eval-only"]])
def test_unknown_key_is_one_line(flags, capsys):
    with pytest.raises(SystemExit) as error:
        train([*flags, "--config-file", CONFIG, "SOLVER.BASE_LRR", "1"])
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("focal-det train: SOLVER.BASE_LRR: ")
    assert "Did you mean 'BASE_LR'?" in line


@pytest.mark.parametrize("words, runs", [([], False), (["--unsafe-yaml"], True)])
def test_code_of_a_config_runs_only_if_asked(words, runs, tmp_path, capsys):
    config = tmp_path / "config.yaml"
    made = tmp_path / "made"
    config.write_text(
        f"MODEL:\n  WEIGHTS: !!python/object/apply:os.makedirs ['{made}']\n"
        "SOLVER: {BASE_LRR: 1}\n"
    )
    with pytest.raises(SystemExit):
        train([*words, "--config-file", str(config)])
    assert made.exists() == runs
    assert ("runs code when it is read" in capsys.readouterr().err) != runs


@pytest.mark.parametrize(
    "words, message",
    [
        ([], "--config-file is required"),
        (["--config-file", "lazy.py"], "the config must be a .yaml file, got 'lazy.py'"),
        (["--config-file", "none.yaml"], "the config none.yaml does not exist"),
        (["--config-file", CONFIG, "SEED"], "options are KEY VALUE pairs; 'SEED' has no value"),
        (["--config-file", CONFIG, "SEED", "x"], "SEED"),
        (
            ["--config-file", CONFIG, "SEED", "1", "--resume"],
            "KEY VALUE pairs come last; --resume must stand before them",
        ),
    ],
)
def test_wrong_arguments_are_refused_in_one_line(words, message, capsys):
    with pytest.raises(SystemExit) as error:
        train(words)
    assert error.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("focal-det train: ") and message in line


def test_more_gpus_than_there_are_is_refused(digits, capsys):
    num = torch.cuda.device_count() + 2
    message = refuse_train(capsys, digits.write_config(), "--num-gpus", str(num))
    assert f"--num-gpus {num}, but torch finds {torch.cuda.device_count()}" in message


@pytest.mark.parametrize(
    "error, kind, message",
    [
        (DivergedError("loss is nan"), launch.StoppedError, "^diverged: loss is nan$"),
        (WeightsError("w.pth: empty"), WeightsError, "^w.pth: empty$"),
        (OSError(errno.ENOSPC, "No space"), launch.StoppedError, "^focal-det train: the disk is"),
        (DiskFullError("full"), launch.StoppedError, "^focal-det train: full$"),
        (DataWorkerError("dead"), launch.StoppedError, "^focal-det train: dead. The last complete"),
        (ValueError("bug"), launch.StoppedError, r"^Traceback(?s:.)*\nValueError: bug$"),
    ],
)
def test_error_of_a_run_is_explained(error, kind, message, digits, monkeypatch):
    def fail(*args):
        raise error

    monkeypatch.setattr(launch, "run_process", fail)
    args = parse(digits.write_config())
    with pytest.raises(kind, match=message):
        launch.start_run(args, check=lambda plan: None)
    # It is the same when it has been sent from another process.
    with pytest.raises(kind, match=message):
        raise pickle.loads(pickle.dumps(launch._explain(error)))


def parse(config, **changes):
    values = {
        "config_file": str(config),
        "opts": [],
        "resume": False,
        "eval_only": False,
        "overwrite": False,
        "no_check": False,
        "unsafe_yaml": False,
        "allow_changes": "",
        "num_gpus": 1,
        "num_processes": 0,
        "num_machines": 1,
        "machine_rank": 0,
        "dist_url": "auto",
        **changes,
    }
    return Namespace(**values)


@pytest.mark.parametrize(
    "words, message",
    [
        (["--num-processes", "2"], "for processes on the CPU, add --num-gpus 0"),
        (["--num-gpus", "0", "--num-processes", "-1"], "--num-processes must be >= 1, got -1"),
        (
            ["--num-gpus", "0", "--num-processes", "2", "--num-machines", "2"],
            "--dist-url is required with --num-machines",
        ),
    ],
)
def test_wrong_numbers_of_processes_are_refused(words, message, digits, capsys):
    assert message in refuse_train(capsys, digits.write_config(), *words)


def test_variables_of_half_a_launcher_are_refused(digits, capsys, monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}.items():
        monkeypatch.setenv(name, value)
    message = refuse_train(capsys, digits.write_config())
    assert "LOCAL_RANK=, LOCAL_WORLD_SIZE=: the launcher of this process must set" in message
