"""docs/clusters.md: its commands and scripts work, on processes and a cluster of this machine."""

import argparse
import re
import subprocess
import sys

import pytest
import yaml
from detectron2.engine import default_argument_parser

from focal_det.tools._train_arguments import add_train_arguments
from tests.conftest import ROOT, run_program
from tests.engine.runs import (
    KEYS,
    find_differences,
    find_free_port,
    read_weights,
    start,
    wait_until,
)
from tests.fake_slurm import FakeSlurm

from .pages import read_blocks, read_commands
from .test_docs import FEW_STEPS, SMALL

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
PAGE = ROOT / "docs" / "clusters.md"
COMMANDS = [x for of_block in read_commands(PAGE) for x in of_block]
(SCRIPT,) = read_blocks(PAGE, "bash")


@pytest.fixture
def slurm(tmp_path, monkeypatch):
    cluster = FakeSlurm(tmp_path / "cluster")
    cluster.install(monkeypatch)
    yield cluster
    cluster.end()


@pytest.mark.slow
@pytest.mark.parametrize("command", [x for x in COMMANDS if x.words[0] == "torchrun"], ids=str)
def test_torchrun_trains(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    words = " ".join(command.words[1:]).replace("29511", find_free_port()).split()
    options = [*FEW_STEPS, *SMALL, "DATASETS.TRAIN", "('digits_val',)", "DATASETS.TEST", "()"]
    whole = [sys.executable, "-m", "torch.distributed.run", *words, *options]
    log = tmp_path / "train.log"
    processes = [start(whole, log) for _ in range(2 if "--nnodes" in words else 1)]
    assert [x.wait(300) for x in processes] == [0] * len(processes), log.read_text()[-3000:]
    out = tmp_path / command.get_value("OUTPUT_DIR")
    assert (out / "model_final.pth").is_file()
    assert "Rank of current process: 0. World size: 2" in (out / "log.txt").read_text()


def test_launcher_submits_the_job(tmp_path, slurm, monkeypatch):
    pytest.importorskip("submitit")
    monkeypatch.chdir(tmp_path)
    (slurm.folder / "controller.py").write_text("")  # no job starts
    (command,) = [x for x in COMMANDS if "--launcher" in x.words]
    code, output = run_program(*command.words[1:], cwd=tmp_path)
    assert code == 0
    log = tmp_path / "output" / "coco" / "slurm" / "77_0_log.out"
    assert output.endswith(f"submitted job 77; log: {log}\n")
    options = slurm.read_options()
    assert (options["partition"], options["gpus-per-node"], options["time"]) == ("gpu", "8", "720")


def test_defaults_that_the_page_names(slurm, tmp_path):
    submitit = pytest.importorskip("submitit")
    text = submitit.slurm.slurm._make_sbatch_string("nothing", tmp_path)
    seconds = re.search(r"--signal=USR2@(\d+)", text)[1]
    assert f"{seconds} seconds (`slurm_signal_delay_s`)" in PAGE.read_text()


def test_sbatch_script_parses():
    subprocess.run(["bash", "-n", "-c", SCRIPT], check=True)


@pytest.mark.slow
def test_sbatch_script_requeues_and_continues(tmp_path, digits, reference, slurm, monkeypatch):
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "1")
    digits.write_config(**KEYS).rename(tmp_path / "better.yaml")
    file = tmp_path / "train.sh"
    file.write_text(SCRIPT.replace("29500", find_free_port()))
    subprocess.run(["sbatch", file], check=True, cwd=tmp_path)
    out = tmp_path / "output" / "cells"
    assert wait_until((out / "last_checkpoint").is_file), slurm.read_log()[-3000:]
    slurm.signal_batch(10)
    assert slurm.wait_for_end() == 0, slurm.read_log()[-3000:]
    log = slurm.read_log()
    assert "stopping after this step, with a checkpoint" in log
    assert "continuing exactly after iteration" in log
    assert find_differences(read_weights(out), reference(2)) == []


@pytest.mark.slow
def test_sbatch_script_ends_with_an_error(tmp_path, slurm, monkeypatch):
    """It is not requeued, though torchrun's code is the same."""
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "1")
    file = tmp_path / "train.sh"
    file.write_text(SCRIPT.replace("29500", find_free_port()))
    subprocess.run(["sbatch", file], check=True, cwd=tmp_path)
    assert slurm.wait_for_end() == 1
    assert "better.yaml" in slurm.read_log()


def test_kubernetes_job_fits_its_runtime_and_our_flags():
    (block,) = read_blocks(PAGE, "yaml")
    runtime, job = yaml.safe_load_all(block)
    assert job["spec"]["runtimeRef"]["kind"] == runtime["kind"]
    assert job["spec"]["runtimeRef"]["name"] == runtime["metadata"]["name"]
    (node,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    pod = node["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    mounts = {x["name"]: x["mountPath"] for x in container["volumeMounts"]}
    assert {*mounts} == {x["name"] for x in pod["volumes"]}
    trainer = job["spec"]["trainer"]
    assert trainer["command"] == ["torchrun", "-m", "focal_det.tools", "train"]
    args = parse_train(trainer["args"])
    assert args.resume and args.config_file.startswith(mounts["runs"])
    assert args.opts[0] == "OUTPUT_DIR" and args.opts[1].startswith(mounts["runs"])
    seconds = int(trainer["env"][0]["value"])
    assert seconds < pod["terminationGracePeriodSeconds"]


def parse_train(words) -> argparse.Namespace:
    parser = default_argument_parser()
    add_train_arguments(parser)
    return parser.parse_args(words)
