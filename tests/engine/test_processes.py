"""Ranks end with the process that started them, and it with them: real signals."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Like `focal-det train` on two GPUs, except that each rank is a separate run on the CPU.
SCRIPT = """
import sys
from torch import multiprocessing
from focal_det.engine import launch, run

def work(rank, args, plan):
    args.opts = [*args.opts, "OUTPUT_DIR", f"{sys.argv[2]}/rank{rank}"]
    run.run_process(args, plan)

def spawn(main, num_gpus, args, **machines):
    multiprocessing.spawn(work, nprocs=2, args=args)

launch.launch = spawn
if __name__ == "__main__":
    from focal_det.tools.__main__ import main
    sys.exit(main(["train", "--no-check", "--config-file", sys.argv[1]]))
"""


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def get_descendants(pid):
    """Processes below one, however deep."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [x for child in map(int, children) for x in (child, *get_descendants(child))]


def wait_until(condition, seconds):
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return condition()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGINT,
        # These two are seen by the ranks in the same way, as the end of their parent.
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, marks=pytest.mark.slow),
    ],
)
def test_ranks_end_with_their_parent(number, digits):
    config = digits.write_config(
        DATASETS__TEST=[],
        SOLVER__MAX_ITER=100_000,
        SOLVER__CHECKPOINT_PERIOD=1,
        DATALOADER__NUM_WORKERS=1,
    )
    script = digits.folder / "two_ranks.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(config), str(digits.folder)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    parent = subprocess.Popen(
        command,
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        # A shell starts what runs in its background with SIGINT ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        files = [digits.folder / f"rank{i}" / "last_checkpoint" for i in range(2)]
        assert wait_until(lambda: all(x.is_file() for x in files), 240)
        ranks = get_descendants(parent.pid)
        assert len(ranks) >= 4  # two ranks, each with a data worker
        parent.send_signal(number)
        assert wait_until(lambda: not any(map(is_running, [parent.pid, *ranks])), 10)
        expected = {signal.SIGINT: 130}.get(number, -number)
        assert parent.wait(1) == expected
    finally:
        for pid in [parent.pid, *get_descendants(parent.pid)]:
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)
