"""What all programs share: errors that a person can fix are one line, bugs are a traceback."""

import json

import pytest
import torch
from tqdm import tqdm

from focal_det.config import merge_options
from focal_det.tools import __main__ as command
from focal_det.tools._arguments import add_json_argument
from focal_det.tools._program import CRASHED, INTERRUPTED, REFUSED, run_program
from tests.conftest import run_python

PROGRAMS = list(command._find_programs())


def call(run, *argv: str) -> int:
    return run_program(
        "toy", "Do a toy.\n\nIn detail.", add_json_argument, run, argv, example="focal-det toy"
    )


def exit_code_of(run, *argv: str) -> int:
    with pytest.raises(SystemExit) as stop:
        call(run, *argv)
    return stop.value.code


def test_exit_code_is_what_the_program_returns():
    assert call(lambda args: None) == 0
    assert call(lambda args: 1) == 1


def test_error_for_the_user_is_one_line(make_cfg, capsys):
    def run(args):
        merge_options(make_cfg(), ["MODEL.RETINANET.NUM_CLASSE", "3"])

    assert exit_code_of(run) == REFUSED
    error = capsys.readouterr().err
    assert error.startswith("focal-det toy: MODEL.RETINANET.NUM_CLASSE: Unknown key")
    assert "Did you mean 'NUM_CLASSES'?" in error
    assert error.count("\n") == 1


def test_missing_file_is_one_line(tmp_path, capsys):
    assert exit_code_of(lambda args: (tmp_path / "missing.yaml").read_text()) == REFUSED
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    "bug", [lambda args: torch.ones(2).tolist()[5], lambda args: json.loads("not json")]
)
def test_bug_is_a_traceback(bug, capsys):
    assert exit_code_of(bug) == CRASHED
    error = capsys.readouterr().err
    assert "Traceback" in error
    assert "This is a bug in focal_det: please report it with the traceback above" in error


def test_interrupt_is_reported_without_traceback(capsys):
    def run(args):
        raise KeyboardInterrupt

    assert exit_code_of(run) == INTERRUPTED
    assert capsys.readouterr().err == "\nfocal-det toy: interrupted\n"


def test_quiet_hides_progress_bars(capsys):
    def run(args):
        list(tqdm(range(3), disable=False))

    call(run, "--quiet")
    assert capsys.readouterr().err == ""
    call(run)
    assert "3/3" in capsys.readouterr().err


def test_help_has_summary_details_and_example(capsys):
    assert exit_code_of(lambda args: None, "--help") == 0
    shown = capsys.readouterr().out
    for text in ("Do a toy.", "In detail.", "example:\n  focal-det toy", "--quiet", "--json"):
        assert text in shown


def test_programs_are_listed_in_the_order_of_use(capsys):
    assert command.main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    listed = [x.split()[0] for x in lines if x.startswith("  ") and not x.startswith("   ")]
    assert listed == PROGRAMS
    assert listed[:4] == ["check", "train", "reproduce", "report"]


def test_unknown_program_names_the_nearest(capsys):
    assert command.main(["chek"]) == 2
    assert "Did you mean 'check'?" in capsys.readouterr().err


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_has_help_with_an_example(name, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main([name, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"focal-det {name}" in shown.partition("example:")[2]


def test_a_program_prints_no_warnings_of_torch():
    _, output = run_python("-m", "focal_det.tools", "demo", "--help", env={"PYTHONWARNINGS": None})
    assert output.startswith("usage:") and "Warning" not in output
