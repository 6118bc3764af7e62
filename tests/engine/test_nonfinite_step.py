"""The kept step: read, repeated and printed by `focal-det reproduce`."""

import json

import pytest
import torch

from focal_det.engine.step_guard import DivergedError
from focal_det.tools.reproduce import main as reproduce


@pytest.mark.parametrize("kind", ["missing", "text", "checkpoint", "list"])
def test_reproduce_refuses_another_file(kind, tmp_path, capsys):
    file = tmp_path / "file.pth"
    if kind == "text":
        file.write_text("a: b\n")
    elif kind == "checkpoint":
        torch.save({"model": {}}, file)
    elif kind == "list":
        torch.save([torch.zeros(1)], file)
    with pytest.raises(SystemExit) as error:
        reproduce([str(file)])
    assert error.value.code == 2
    message = "No such file" if kind == "missing" else "is not a step kept by focal-det train"
    output = capsys.readouterr().err
    assert message in output and str(file) in output


def test_reproduce_prints_the_step(train_steps, tmp_path, capsys):
    with pytest.raises(DivergedError):
        train_steps(lambda grad, _: grad * float("nan"))
    file = str(tmp_path / "nonfinite_step_0000000_rank0.pth")
    assert reproduce([file]) == 0
    lines = capsys.readouterr().out.splitlines()
    # The NaN came from a hook of this test, which is not part of the step.
    assert lines[0] == "iteration 0: all is finite" and lines[1].startswith("  loss_cls: ")
    assert "  parameters with a non-finite gradient: 0" in lines
    assert reproduce([file, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["iteration"] == 0 and set(printed["losses"]) == {"loss_cls", "loss_box_reg"}
    assert printed["nonfinite_gradients"] == [] and set(printed["largest"]) == {
        "|logit|",
        "|delta|",
    }
