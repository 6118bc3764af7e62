"""Faults of the files of a run: checkpoints, their tag, a used folder, unsafe weights."""

import json
import os
import pickle
import shutil

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer

from tests.conftest import run_program
from tests.faults.copies import DigitsCopy, refuse_train, run_check, run_train
from tests.faults.test_training_faults import make_trainer

NOT_EVALUATED = {"DATASETS__TEST": []}


def get_start(digits):
    """The iteration that the last run in the folder started from, by its log."""
    lines = (digits.folder / "out" / "log.txt").read_text().splitlines()
    starts = [x for x in lines if "Starting training from iteration" in x]
    return int(starts[-1].rsplit(" ", 1)[1])


def start_stock(digits, resume, **keys):
    """Detectron2's own trainer, up to its first step."""
    trainer = make_trainer(DefaultTrainer, digits, **NOT_EVALUATED, **keys)
    trainer.resume_or_load(resume=resume)
    return trainer


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """OUTPUT_DIR of two iterations with a checkpoint each."""
    digits = DigitsCopy(tmp_path_factory.mktemp("trained"))
    run_train(digits.write_config(SOLVER__CHECKPOINT_PERIOD=1, **NOT_EVALUATED))
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop("copy")
    return digits.folder / "out"


@pytest.mark.parametrize(
    "row, tag, message, what, stock",
    [
        (
            6,
            "",
            "is empty or missing",
            "`last_checkpoint` is empty",
            "stops: the folder is not a checkpoint",
        ),
        (
            7,
            "model_0000007.pth",
            "names model_0000007.pth, which does not exist",
            "`last_checkpoint` names a missing file",
            "stops at its name",
        ),
        (
            8,
            None,
            "is empty or missing",
            "`last_checkpoint` is missing",
            "SILENT: starts at 0, over the checkpoints",
        ),
    ],
)
def test_rows_6_to_8_tag_without_a_checkpoint(
    row, tag, message, what, stock, trained, digits, capsys, fault
):
    config = digits.write_config(SOLVER__CHECKPOINT_PERIOD=1, **NOT_EVALUATED)
    shutil.copytree(trained, digits.folder / "out")
    file = digits.folder / "out" / "last_checkpoint"
    file.unlink()
    if tag is not None:
        file.write_text(tag)
    if tag is None:
        assert start_stock(digits, resume=True).start_iter == 0
        seen = "starts at 0"
    else:
        with pytest.raises(Exception) as error:
            start_stock(digits, resume=True)
        seen = f"{type(error.value).__name__}: {error.value}".replace(str(digits.folder), "...")
    capsys.readouterr()
    run_train(config, "--resume", "SOLVER.MAX_ITER", "3")
    assert get_start(digits) == 2
    # In log.txt as well, for a run whose terminal nobody has seen.
    log = (digits.folder / "out" / "log.txt").read_text()
    assert f"{file} {message}" in log and f"{file} {message}" in capsys.readouterr().out
    fault(row, what, stock=stock, ours="resumes from the newest readable checkpoint", seen=seen)


def test_row_9_used_folder(digits, capsys, fault):
    config = digits.write_config(**NOT_EVALUATED)
    run_train(config)
    out = digits.folder / "out"
    before = {x.name: x.read_bytes() for x in out.iterdir() if x.is_file()}
    message = refuse_train(capsys, config)
    assert str(out) in message and "--resume" in message and "--overwrite" in message
    assert {x.name: x.read_bytes() for x in out.iterdir() if x.is_file()} == before
    trainer = start_stock(digits, resume=False)
    trainer.train()
    lines = [json.loads(x) for x in (out / "metrics.json").read_text().splitlines()]
    assert [x["iteration"] for x in lines if "loss_cls" in x] == [1, 1]
    assert (out / "model_final.pth").read_bytes() != before["model_final.pth"]
    fault(
        9,
        "second run in a used OUTPUT_DIR",
        stock="SILENT: overwrites the checkpoints, mixes the metrics",
        ours="refused; `--resume` or `--overwrite`",
        seen="iteration 1 twice in metrics.json",
    )


@pytest.fixture
def small_disk(small_disk):
    """With room for one checkpoint of some 3 MB."""
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    (small_disk / "filler").write_bytes(bytes(free - 4_000_000))
    return small_disk


def test_row_10_full_disk(digits, small_disk, fault):
    keys = {
        "OUTPUT_DIR": str(small_disk / "out"),
        "SOLVER__MAX_ITER": 3,
        "SOLVER__CHECKPOINT_PERIOD": 1,
        "MODEL__RESNETS__STEM_OUT_CHANNELS": 4,
        "MODEL__RESNETS__RES2_OUT_CHANNELS": 16,
        "MODEL__RESNETS__WIDTH_PER_GROUP": 4,
        "MODEL__FPN__OUT_CHANNELS": 32,
        **NOT_EVALUATED,
    }
    out = small_disk / "out"
    config = digits.write_config(**keys)
    command = ["train", "--no-check", "--config-file", config]
    code, output = run_program(*command, check=False)
    assert code == 1 and "Traceback" not in output
    last = output.rstrip().splitlines()[-1]
    assert last.startswith(f"focal-det train: the disk is full: {out}/model_")
    assert "--resume" in last
    tag = (out / "last_checkpoint").read_text()
    assert {x.name for x in out.glob("model_*")} == {tag}
    # Detectron2's checkpointer, with as little room.
    model = torch.nn.Linear(1000, 1000)
    with pytest.raises((OSError, RuntimeError)) as error:
        DetectionCheckpointer(model, str(out)).save("model_of_detectron2")
    with pytest.raises(Exception):  # noqa: B017  (whatever torch says of half a file)
        torch.load(out / "model_of_detectron2.pth", weights_only=True)
    (out / "model_of_detectron2.pth").unlink()
    (small_disk / "filler").unlink()
    _, output = run_program(*command, "--resume")
    assert f"Starting training from iteration {int(tag[6:-4]) + 1}" in output
    fault(
        10,
        "full disk at a checkpoint",
        stock="stops with tracebacks; half a checkpoint is left",
        ours="one line with the folder and the free space; the last good checkpoint stays",
        seen=f"{type(error.value).__name__}, half a file",
    )


def test_row_21_exception_in_the_last_iteration(digits, monkeypatch, fault):
    evaluated = []

    def fail_at_the_end(kind):
        step = kind.run_step

        def run_step(trainer):
            if trainer.iter == 1:
                raise RuntimeError("out of luck")
            step(trainer)

        monkeypatch.setattr(kind, "run_step", run_step)
        monkeypatch.setattr(kind, "test", staticmethod(lambda *args: evaluated.append(kind) or {}))

    from focal_det.engine.trainer import Trainer

    config = digits.write_config()
    with monkeypatch.context() as monkeypatch:
        fail_at_the_end(Trainer)
        with pytest.raises(SystemExit, match=r"Traceback(?s:.)*\nRuntimeError: out of luck"):
            run_train(config)
        fail_at_the_end(DefaultTrainer)
        trainer = make_trainer(DefaultTrainer, digits)
        with pytest.raises(RuntimeError, match="out of luck"):
            trainer.train()
    assert evaluated == [DefaultTrainer]
    fault(
        21,
        "exception in the last iteration",
        stock="evaluates all test sets, and then stops",
        ours="stops",
        seen="evaluated after the exception",
    )


class RunsCode:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.makedirs, (self.folder,)


@pytest.mark.parametrize("is_tagged", [False, True])
def test_row_47_pickle_that_runs_code(is_tagged, digits, capsys, fault):
    """As MODEL.WEIGHTS, and as what `last_checkpoint` names."""
    made, out = digits.folder / "made", digits.folder / "out"
    out.mkdir()
    file = out / "model.pkl"
    file.write_bytes(pickle.dumps({"model": RunsCode(made), "__author__": "x"}))
    words = []
    if is_tagged:
        (out / "last_checkpoint").write_text(file.name)
        words = ["--resume"]
    config = digits.write_config(MODEL__WEIGHTS=str(file))
    code, output = run_check(config, capsys)
    assert code == 2 and "makedirs" in output and not made.exists()
    message = refuse_train(capsys, config, *words)
    assert str(file) in message and "makedirs" in message and not made.exists()
    with pytest.raises(Exception):  # noqa: B017  (after the code has run)
        start_stock(digits, resume=is_tagged, MODEL__WEIGHTS=str(file))
    assert made.is_dir()
    fault(
        47,
        "`.pkl` weights, or a `last_checkpoint` that names one",
        stock="SILENT: runs their code",
        ours="numpy arrays only; anything else is refused by name",
        seen="made a folder",
    )
