"""Runs that Detectron2's own trainer begins and ours continues, and the other way round.

Ours stores the state of the trainer as Detectron2's main does. Detectron2 0.5 and 0.6 neither write
nor read the state of the optimizer.
"""

import shutil

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.engine import DefaultTrainer

from focal_det.engine.trainer import Trainer
from tests.engine.runs import find_differences, read_iterations
from tests.faults.copies import DigitsCopy, refuse_train, run_train
from tests.faults.test_training_faults import make_trainer

KEYS = {"DATASETS__TEST": [], "SOLVER__CHECKPOINT_PERIOD": 2, "SOLVER__BASE_LR": 0.01, "SEED": 3}
LAST = "model_0000003.pth"
# Main saves it in this method, which 0.5 and 0.6 do not have.
HAS_OPTIMIZER = "state_dict" in vars(DefaultTrainer)


def forget_data():
    for catalog in (DatasetCatalog, MetadataCatalog):
        catalog.pop("copy")


@pytest.fixture(scope="module")
def begin(tmp_path_factory):
    """A function that copies a trainer's run of four iterations and returns its checkpoint."""
    known = {}

    def run(kind, digits):
        if kind not in known:
            source = DigitsCopy(tmp_path_factory.mktemp(kind.__name__))
            trainer = make_trainer(kind, source, SOLVER__MAX_ITER=4, **KEYS)
            trainer.resume_or_load(resume=False)
            trainer.train()
            forget_data()
            # As if it had been stopped before the end of a longer run.
            out = source.folder / "out"
            (out / "model_final.pth").unlink()
            (out / "last_checkpoint").write_text(LAST)
            known[kind] = out
        shutil.copytree(known[kind], digits.folder / "out")
        return torch.load(digits.folder / "out" / LAST, weights_only=True)

    return run


def resume(kind, digits, **kwargs):
    """A trainer that has resumed a run, before its first step."""
    trainer = make_trainer(kind, digits, SOLVER__MAX_ITER=6, **KEYS)
    trainer.resume_or_load(resume=True, **kwargs)
    return trainer


def get_momentum(state):
    return {k: v["momentum_buffer"] for k, v in state["state"].items()}


def test_stock_trainer_resumes_from_ours(begin, digits):
    checkpoint = begin(Trainer, digits)
    trainer = resume(DefaultTrainer, digits)
    assert trainer.start_iter == 4
    assert find_differences(trainer.model.state_dict(), checkpoint["model"]) == []
    assert trainer.scheduler.last_epoch == 4
    saved = get_momentum(checkpoint["trainer"]["_trainer"]["optimizer"])
    assert saved and any(x.abs().sum() > 0 for x in saved.values())
    momentum = get_momentum(trainer.optimizer.state_dict())
    assert find_differences(momentum, saved if HAS_OPTIMIZER else {}) == []
    trainer.train()
    assert trainer.iter == 6
    assert all(x.isfinite().all() for x in trainer.model.state_dict().values())


@pytest.mark.skipif(HAS_OPTIMIZER, reason="Detectron2 0.5 and 0.6 save no optimizer")
def test_stock_checkpoint_without_optimizer_is_refused(begin, digits, capsys):
    checkpoint = begin(DefaultTrainer, digits)
    assert "_trainer" not in checkpoint["trainer"]
    config = digits.write_config(SOLVER__MAX_ITER=6, **KEYS)
    message = refuse_train(capsys, config, "--resume")
    assert f"{LAST}: it contains no state of the optimizer" in message
    assert "--allow-changes optimizer" in message
    # Nothing of the run has changed.
    assert (digits.folder / "out" / "last_checkpoint").read_text() == LAST
    assert read_iterations(digits.folder / "out")[-1] == 3


def test_ours_resumes_from_the_stock_trainer(begin, digits):
    checkpoint = begin(DefaultTrainer, digits)
    trainer = resume(Trainer, digits, allow_changes=[] if HAS_OPTIMIZER else ["optimizer"])
    assert trainer.start_iter == 4
    assert find_differences(trainer.model.state_dict(), checkpoint["model"]) == []
    momentum = get_momentum(trainer.optimizer.state_dict())
    saved = {}
    if HAS_OPTIMIZER:
        saved = get_momentum(checkpoint["trainer"]["_trainer"]["optimizer"])
        assert any(x.abs().sum() > 0 for x in saved.values())
    assert find_differences(momentum, saved) == []


def test_resume_from_the_stock_trainer_warns_about_data(begin, digits):
    begin(DefaultTrainer, digits)
    config = digits.write_config(SOLVER__MAX_ITER=6, **KEYS)
    run_train(config, "--resume", *([] if HAS_OPTIMIZER else ["--allow-changes", "optimizer"]))
    log = (digits.folder / "out" / "log.txt").read_text()
    warning = "the checkpoint has no state of 1 processes: continuing with the data after 8 images"
    assert warning in log and "continuing exactly" not in log
    iterations = read_iterations(digits.folder / "out")
    assert iterations[-1] == 5
    final = torch.load(digits.folder / "out" / "model_final.pth", weights_only=True)
    assert final["iteration"] == 5 and final["trainer"]["_trainer"]["optimizer"]["state"]
