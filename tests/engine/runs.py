"""Real runs of `focal-det train` on a few images, interrupted by real signals."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch

NUM_ITERS = 24
KEYS = {
    "SEED": 3,
    "DATASETS__TEST": [],
    "SOLVER__MAX_ITER": NUM_ITERS,
    "SOLVER__CHECKPOINT_PERIOD": 5,
    "SOLVER__IMS_PER_BATCH": 4,
    # Something random for each image, so that equal weights mean equal random numbers.
    "INPUT__RANDOM_FLIP": "horizontal",
    "INPUT__MIN_SIZE_TRAIN": [96, 112, 128],
}
TWO = ["--num-gpus", "0", "--num-processes", "2"]
SECONDS = 120  # to wait for a process on a busy machine


def get_env(**variables: str) -> dict[str, str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", **variables}
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR"):
        env.pop(name, None)
    return env


def obey_signals() -> None:
    """Undo, in a new process, that background jobs ignore SIGINT, and `nohup` SIGHUP."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def start(command: list, log: Path, **variables: str) -> subprocess.Popen:
    """Start a process whose output goes to a file."""
    with open(log, "ab") as stream:
        return subprocess.Popen(
            [str(x) for x in command],
            env=get_env(**variables),
            stdout=stream,
            stderr=stream,
            preexec_fn=obey_signals,
        )


def start_train(config: Path, *words: str, **variables: str) -> subprocess.Popen:
    """Start `focal-det train` without checks; its output goes to train.log beside the config."""
    command = [sys.executable, "-m", "focal_det.tools", "train", "--no-check"]
    return start(
        [*command, "--config-file", config, *words], config.with_name("train.log"), **variables
    )


def run_to_end(config: Path, *words: str, seconds: float = SECONDS) -> Path:
    """Run `focal-det train` to its end; returns its output file."""
    process = start_train(config, *words)
    code = process.wait(seconds)
    log = config.with_name("train.log")
    assert code == 0, log.read_text()[-3000:]
    return log


def wait_until(condition, seconds: float = SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)
    return condition()


def wait_for_checkpoint(out: Path, process: subprocess.Popen) -> None:
    """Wait until a run that goes on has saved its first checkpoint."""
    tag = out / "last_checkpoint"
    assert wait_until(lambda: tag.is_file() or process.poll() is not None)
    assert process.poll() is None, (out.parent / "train.log").read_text()[-3000:]


def get_last_iteration(out: Path) -> int:
    """The iteration of the last checkpoint."""
    return torch.load(out / (out / "last_checkpoint").read_text(), weights_only=True)["iteration"]


def read_number(file: Path) -> int:
    """The number in a file; -1 if it has none yet."""
    try:
        return int(file.read_text())
    except (OSError, ValueError):
        return -1


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def get_descendants(pid: int) -> list[int]:
    """All descendants of a process."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return []
    return [x for child in map(int, children) for x in (child, *get_descendants(child))]


def kill_all(pids: list[int]) -> None:
    for pid in pids:
        if is_running(pid):
            os.kill(pid, signal.SIGKILL)


def read_weights(out: Path, name: str = "model_final.pth") -> dict:
    return torch.load(out / name, weights_only=True)["model"]


def find_differences(a: dict, b: dict) -> list[str]:
    """Names of the tensors whose values are not equal."""
    assert a.keys() == b.keys()
    return [k for k in a if not torch.equal(a[k], b[k])]


def read_iterations(out: Path) -> list[int]:
    """The iterations of metrics.json that have a loss."""
    lines = [json.loads(x) for x in (out / "metrics.json").read_text().splitlines()]
    return [x["iteration"] for x in lines if "total_loss" in x]


def read_command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def find_free_port() -> str:
    with socket.socket() as free:
        free.bind(("", 0))
        return str(free.getsockname()[1])
