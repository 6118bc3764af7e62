"""What `focal-det train` refuses before it starts a process, and how it names what stopped one."""

import errno
from argparse import Namespace

import pytest
import torch
from torch import multiprocessing

from focal_det.checkpoint.weights_file import WeightsError
from focal_det.engine import launch
from focal_det.engine.run import RunPlan
from focal_det.engine.step_guard import DivergedError
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


def in_process(error: str) -> Exception:
    """What torch raises for an exception in one of several processes."""
    text = f"\n\n-- Process 1 terminated with the following error:\nTraceback ...\n{error}\n"
    return multiprocessing.ProcessRaisedException(text, 1, 4711)


@pytest.mark.parametrize(
    "error, kind, message",
    [
        (DivergedError("loss is nan"), launch.StoppedError, "^diverged: loss is nan$"),
        (
            in_process("a.DivergedError: loss is nan\n  x"),
            launch.StoppedError,
            "^diverged: loss is",
        ),
        (WeightsError("w.pth: empty"), WeightsError, "^w.pth: empty$"),
        (in_process("a.WeightsError: w.pth: empty"), WeightsError, "^w.pth: empty$"),
        (OSError(errno.ENOSPC, "No space"), launch.StoppedError, "^focal-det train: the disk is"),
        (in_process("a.DiskFullError: full"), launch.StoppedError, "^focal-det train: full$"),
        (ValueError("bug"), launch.StoppedError, r"^Traceback(?s:.)*\nValueError: bug$"),
        (
            in_process("ValueError: bug"),
            launch.StoppedError,
            r"^Traceback(?s:.)*\nValueError: bug$",
        ),
    ],
)
def test_error_of_a_process_is_explained(error, kind, message, monkeypatch):
    def fail(*args, **kwargs):
        raise error

    monkeypatch.setattr(launch, "launch", fail)
    args = Namespace(overwrite=False, num_gpus=2, num_machines=1, machine_rank=0, dist_url="auto")
    with pytest.raises(kind, match=message):
        launch.launch_run(args, RunPlan(cfg=None))
