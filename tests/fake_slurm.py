"""A stand-in for a Slurm cluster, on this machine: the commands that submitit and scripts call.

As in Slurm, a signal to a job reaches all processes of its tasks, and a job that is requeued is
ended and started again with SLURM_RESTART_COUNT.
"""

import os
import re
import sys
from pathlib import Path

from tests.engine.runs import get_descendants, is_running, kill_all, wait_until

_SBATCH = """
import os, pathlib, subprocess, sys
folder = pathlib.Path(os.environ["FAKE_SLURM"])
(folder / "script.sh").write_text(pathlib.Path(sys.argv[-1]).read_text())
with open(folder / "batch.log", "ab") as log:
    controller = subprocess.Popen(
        [sys.executable, folder / "controller.py"], stdout=log, stderr=log, start_new_session=True
    )
(folder / "controller.pid").write_text(str(controller.pid))
print("Submitted batch job 77")
"""
_CONTROLLER = """
import os, pathlib, re, signal, subprocess, time
folder = pathlib.Path(os.environ["FAKE_SLURM"])
options = dict(re.findall(r"--([a-z-]+)=(\\S+)", (folder / "script.sh").read_text()))
nodes, tasks = (int(options.get(x, 1)) for x in ("nodes", "ntasks-per-node"))
env = {
    **os.environ, "SLURM_JOB_ID": "77", "SLURM_NNODES": str(nodes), "SLURM_JOB_NUM_NODES": "1",
    "SLURM_NTASKS": str(nodes * tasks), "SLURM_JOB_NODELIST": "localhost",
}
requeue = folder / "requeue"
for count in range(10):
    requeue.unlink(missing_ok=True)
    if count:
        env["SLURM_RESTART_COUNT"] = str(count)
    job = subprocess.Popen(["bash", folder / "script.sh"], env=env, start_new_session=True)
    (folder / "job.pid").write_text(str(job.pid))
    while job.poll() is None and not requeue.exists():
        time.sleep(0.05)
    if requeue.exists():
        time.sleep(0.5)
    try:
        os.killpg(job.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    job.wait()
    if not requeue.exists():
        break
(folder / "exit_code").write_text(str(job.returncode))
"""
_SRUN = """
import os, pathlib, subprocess, sys
words, files = sys.argv[1:], {}
while words[0].startswith("-"):
    option = words.pop(0)
    if option in ("--output", "--error"):
        files[option] = words.pop(0)
tasks = []
for rank in range(int(os.environ["SLURM_NTASKS"])):
    env = {**os.environ, "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0"}
    file = files.get("--output", "/dev/stdout").replace("%j", "77").replace("%t", str(rank))
    with open(file, "ab") as log:
        tasks.append(subprocess.Popen(words, env=env, stdout=log, stderr=log))
pathlib.Path(os.environ["FAKE_SLURM"], "srun.pid").write_text(str(os.getpid()))
sys.exit(max(x.wait() for x in tasks))
"""
_SCONTROL = """
import os, pathlib, sys
if sys.argv[1] == "requeue":
    pathlib.Path(os.environ["FAKE_SLURM"], "requeue").touch()
else:
    assert sys.argv[1:] == ["show", "hostnames", "localhost"], sys.argv
    print("localhost")
"""
_SCANCEL = """
import sys
sys.path.insert(0, ROOT)
from tests.fake_slurm import FakeSlurm
option, job = sys.argv[1:]
assert option == "--signal=TERM" and job == "77", sys.argv
FakeSlurm.of_environment().signal_tasks(15)
"""


def _make_header() -> str:
    """The start of a Python program: the shell runs the quoted line, and Python skips it.

    A line with `#!` and the interpreter would not do where its path has a space.
    """
    return f"#!/bin/sh\n'''exec' '{sys.executable}' \"$0\" \"$@\"\n' '''\n"


class FakeSlurm:
    """The commands, in a folder for the PATH, and the state of the only job."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"

    @classmethod
    def of_environment(cls) -> "FakeSlurm":
        return cls(Path(os.environ["FAKE_SLURM"]))

    def install(self, monkeypatch) -> None:
        self.bin.mkdir(parents=True)
        (self.folder / "controller.py").write_text(_CONTROLLER)
        root = str(Path(__file__).parents[1])
        programs = {
            "sbatch": _SBATCH,
            "srun": _SRUN,
            "scontrol": _SCONTROL,
            "scancel": _SCANCEL.replace("ROOT", repr(root)),
        }
        for name, text in programs.items():
            (self.bin / name).write_text(_make_header() + text)
            (self.bin / name).chmod(0o755)
        path = [self.bin, Path(sys.executable).parent, os.environ["PATH"]]
        monkeypatch.setenv("PATH", os.pathsep.join(map(str, path)))
        monkeypatch.setenv("FAKE_SLURM", str(self.folder))
        monkeypatch.setenv("PYTHONPATH", root)
        # A job inherits this environment. Sums of floats depend on the number of threads.
        monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def _read_pid(self, name: str) -> int:
        return int((self.folder / f"{name}.pid").read_text())

    def signal_tasks(self, number: int) -> None:
        """Send a signal to the tasks of the job; as in Slurm, all of their processes get it."""
        for pid in get_descendants(self._read_pid("srun")):
            if is_running(pid):
                os.kill(pid, number)

    def signal_batch(self, number: int) -> None:
        """Send a signal to the script alone, as Slurm does for `--signal=B:...`."""
        os.kill(self._read_pid("job"), number)

    def kill_node(self) -> None:
        """End the job as the failure of a machine does; Slurm requeues it."""
        (self.folder / "requeue").touch()

    def wait_for_end(self, seconds: float = 120) -> int:
        """Wait for the end of the job; returns its exit code."""
        file = self.folder / "exit_code"
        assert wait_until(lambda: file.is_file() and file.read_text(), seconds), self.read_log()
        return int(file.read_text())

    def read_log(self) -> str:
        return (self.folder / "batch.log").read_text()

    def read_options(self) -> dict[str, str]:
        """The options of sbatch in the script."""
        text = (self.folder / "script.sh").read_text()
        return {k: v for k, v in re.findall(r"^#SBATCH --([a-z-]+)=?(\S*)", text, re.MULTILINE)}

    def end(self) -> None:
        for name in ("controller", "job"):
            if (self.folder / f"{name}.pid").is_file():
                pid = self._read_pid(name)
                kill_all([pid, *get_descendants(pid)])
