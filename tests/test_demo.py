"""`make demo`, whole: the focal loss is ahead of cross entropy, and a page shows both."""

import os
import shutil
import subprocess
import sys

import pytest

from focal_det.experiments.records import get_figures, read_metrics
from tests.conftest import ROOT


@pytest.mark.slow
@pytest.mark.longest
def test_demo_shows_what_the_focal_loss_is_for():
    out = ROOT / "output" / "demo"
    shutil.rmtree(out, ignore_errors=True)
    # As typed in a terminal: a make inside `make test-slow` ends with a line about its folder.
    env = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    command = ["make", "demo", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    assert "eta:" in done.stdout
    precisions = []
    for name in ("focal_loss", "cross_entropy"):
        assert (out / name / "model_final.pth").is_file()
        assert list((out / name).glob("events.out.tfevents.*"))
        precisions.append(get_figures(read_metrics(out / name / "metrics.json"))["bbox/AP"])
    focal_loss, cross_entropy = precisions
    assert focal_loss >= 45 and cross_entropy <= focal_loss - 10
    assert "Beside another run" in (out / "report.html").read_text()
