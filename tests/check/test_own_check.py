"""A new check is one new file, in the package or of a user; docs/check.md lists all rules."""

import re
import shutil

from tests.conftest import ROOT, load_dev, run_python

PAGE = (ROOT / "docs" / "check.md").read_text(encoding="utf-8")
(OWN_CHECK,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
WORDS = ["--config-file", "digits/focal_retinanet_tiny.yaml", "--dataset", "digits_val"]
WORDS += ["--images", "1", "SOLVER.MAX_ITER", "9", "SOLVER.STEPS", "()", "SOLVER.WARMUP_ITERS", "1"]
FOUND = "warning CHK900 short training run: SOLVER.MAX_ITER 9. Raise SOLVER.MAX_ITER."
# Twice in one process, as starting it takes most of the time.
CODE = f"""
from focal_det.tools.check import main
words = {WORDS}
print("exit code", main(words))
print("exit code", main(["--ignore", "CHK900", *words]), "when ignored")
"""


def test_page_is_that_of_the_rules():
    assert load_dev("render_check").render_check() == PAGE, "run `make readme`"


def check_found_and_ignored(output):
    assert output.count(FOUND) == 1 and output.count("CHK900") == 1, output
    assert "exit code 1\n" in output and "exit code 0 when ignored" in output, output


def test_check_of_a_users_file_runs(tmp_path):
    (tmp_path / "my_check.py").write_text(OWN_CHECK)
    env = {"FOCAL_DET_ENV_MODULE": "my_check.py", "PYTHONPATH": str(ROOT)}
    _, output = run_python("-c", CODE, env=env, cwd=tmp_path)
    check_found_and_ignored(output)


def test_check_in_a_new_file_of_the_package_runs(tmp_path):
    for folder in ("focal_det", "configs"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    text = OWN_CHECK.replace("from focal_det.check import", "from . import")
    (tmp_path / "focal_det" / "check" / "short_run.py").write_text(text)
    _, output = run_python("-c", CODE, env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path)
    check_found_and_ignored(output)
