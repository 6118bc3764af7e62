"""`make demo`, whole: it reaches the AP that the README shows and leaves what it says."""

import os
import shutil
import subprocess
import sys

import pytest

from focal_det.experiments.records import get_figures, read_metrics
from tests.conftest import ROOT


@pytest.mark.slow
def test_the_demo_learns_the_digits_and_leaves_its_pictures():
    out = ROOT / "output" / "demo"
    shutil.rmtree(out, ignore_errors=True)
    # As typed in a terminal: a make inside of `make test-slow` would close with a line about the folder it leaves.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "demo", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert done.stdout.strip().splitlines()[-1].endswith(str(out))
    for name in ("detections.png", "curves.png", "metrics.json", "model_final.pth"):
        assert (out / name).is_file()
    assert list(out.glob("events.out.tfevents.*")) and "eta:" in done.stdout
    assert get_figures(read_metrics(out / "metrics.json"))["bbox/AP"] >= 45
