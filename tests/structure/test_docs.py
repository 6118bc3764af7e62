"""docs/losses.md: every registered component with every argument and its default, and nothing else.

docs/code.md: its own loss trains.
"""

import json
import math
import re
import shlex

import pytest
import yaml

from focal_det.registry import CLS_LOSS_REGISTRY, NORMALIZER_REGISTRY, get_constructor_args
from tests.conftest import ROOT, run_python

DOCS = (ROOT / "docs" / "losses.md").read_text()
ROWS = {m[1]: m[0] for m in re.finditer(r"^\| `(\w+)` \|.*$", DOCS, re.MULTILINE)}


def test_it_has_every_component_and_no_other():
    assert set(ROWS) == {
        name for registry in (CLS_LOSS_REGISTRY, NORMALIZER_REGISTRY) for name, _ in registry
    }


@pytest.mark.parametrize("name", sorted(dict(CLS_LOSS_REGISTRY)))
def test_it_has_the_arguments_and_defaults_of_a_loss(name):
    greek = {"gamma": "\N{GREEK SMALL LETTER GAMMA}", "alpha": "\N{GREEK SMALL LETTER ALPHA}"}
    for argument, default in get_constructor_args(CLS_LOSS_REGISTRY.get(name)).items():
        if argument == "num_classes":
            continue
        if argument in greek:
            pattern = rf"{greek[argument]} \({default:g}"
        else:
            shown = list(default) if default == () else default
            pattern = rf"`{argument}`[^(`]*\({re.escape(str(shown))}"
        assert re.search(pattern, ROWS[name]), f"{argument} ({default})"


def test_the_file_with_an_own_loss_trains(tmp_path):
    """A step of the command in docs/code.md, in a folder with nothing but the file shown there."""
    page = (ROOT / "docs" / "code.md").read_text()
    (code,) = re.findall(r"```python\n(# my_loss\.py\n.*?)```", page, re.DOTALL)
    (command,) = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    (tmp_path / "my_loss.py").write_text(code)
    variable, focal_det, *words = shlex.split(command.replace("\\\n", " "))
    name, value = variable.split("=")
    assert (name, focal_det) == ("FOCAL_DET_ENV_MODULE", "focal-det")
    few = ["SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2", "OUTPUT_DIR", "out"]
    few += ["DATASETS.TRAIN", "('digits_val',)", "DATASETS.TEST", "()"]
    env = {name: value, "PYTHONPATH": str(ROOT), "DETECTRON2_ENV_MODULE": None}
    program, *options = words
    command = ("-m", "focal_det.tools", program, "--no-check", *options, *few)
    run_python(*command, env=env, cwd=tmp_path)
    loss = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["MODEL"]["FOCAL_DET"]
    assert loss["CLS_LOSS"]["NAME"] == "MyLoss"
    assert loss["CLS_LOSS"]["ARGS"]["MyLoss"] == {"threshold": 0.6}
    (metrics,) = map(json.loads, (tmp_path / "out" / "metrics.json").read_text().splitlines())
    assert math.isfinite(metrics["loss_cls"]) and metrics["loss_cls"] > 0
