"""`make demo`, whole: it reaches the AP that the README shows, and leaves a report."""

import os
import shutil
import subprocess
import sys

import pytest

from focal_det.experiments.records import get_figures, read_metrics
from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.longest
def test_demo_learns_the_digits_and_leaves_a_report():
    out = ROOT / "output" / "demo"
    shutil.rmtree(out, ignore_errors=True)
    # As typed in a terminal: a make inside `make test-slow` ends with a line about its folder.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "demo", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    for name in ("report.html", "metrics.json", "model_final.pth"):
        assert (out / name).is_file()
    assert list(out.glob("events.out.tfevents.*")) and "eta:" in done.stdout
    assert get_figures(read_metrics(out / "metrics.json"))["bbox/AP"] >= 45
