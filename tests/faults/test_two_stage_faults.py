"""Non-finite numbers in each stage of a two-stage detector: stopped, kept and repeated."""

import math

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.modeling import build_model
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from focal_det.engine import step_guard
from focal_det.engine.nonfinite_step import (
    compute_largest_outputs,
    get_step_files,
    reproduce_step,
)
from focal_det.engine.step_guard import DivergedError, StepGuard
from focal_det.engine.trainer import Trainer
from focal_det.tools.reproduce import main as reproduce
from tests.conftest import make_batch, run_ranks
from tests.faults.copies import CASCADE, FASTER
from tests.faults.test_training_faults import make_trainer, stop_of_detectron2
from tests.modeling.two_stage import make_two_stage_cfg

RPN = "proposal_generator"
BOX = "roi_heads.box_predictor"


def before_step(trainer, iteration, change):
    """Call a function before the step of one iteration."""
    step = trainer.run_step

    def run_step():
        if trainer.iter == iteration:
            with torch.no_grad():
                change()
        step()

    trainer.run_step = run_step


def stop_at_huge_biases(digits, layer, **keys):
    """The message of a run whose layer has huge, but finite biases in iteration 1."""
    trainer = make_trainer(Trainer, digits, **keys)
    bias = trainer.model.get_submodule(layer).bias
    signs = torch.tensor([1.0, -1.0]).repeat(len(bias))[: len(bias)]
    before_step(trainer, 1, lambda: bias.copy_(3e38 * signs))
    with pytest.raises(DivergedError) as stop:
        trainer.train()
    return str(stop.value)


def get_step_file(digits):
    return digits.folder / "out" / "nonfinite_step_0000001_rank0.pth"


@pytest.mark.parametrize(
    ("keys", "stage", "layer", "loss"),
    [
        (FASTER, RPN, "rpn_head.objectness_logits", "loss_rpn_cls"),
        (FASTER, BOX, "cls_score", "loss_cls"),
        (FASTER, BOX, "bbox_pred", "loss_box_reg"),
        (CASCADE, f"{BOX}.1", "cls_score", "loss_cls_stage1"),
        (CASCADE, f"{BOX}.2", "bbox_pred", "loss_box_reg_stage2"),
    ],
)
def test_nonfinite_loss_of_a_stage_is_repeated(keys, stage, layer, loss, digits, capsys):
    """With the same random samples, so that the finite losses are the same as well."""
    message = stop_at_huge_biases(digits, f"{stage}.{layer}", **keys)
    assert f"Iteration 1: {loss} is inf (" in message
    assert message.count(".png") == 2
    kind = "delta" if layer == "bbox_pred" else "logit"
    assert f"largest |{kind}| of {stage}, in evaluation mode: 3e+38" in message
    again = reproduce_step(get_step_file(digits))
    assert again["losses"].pop(loss) == math.inf
    assert len(again["losses"]) == (7 if keys is CASCADE else 3)
    for name, value in again["losses"].items():
        assert f"{name} {value:.4g}" in message
    assert reproduce([str(get_step_file(digits))]) == 0
    assert "iteration 1: non-finite again" in capsys.readouterr().out


def test_pixels_that_stop_the_forward_pass_are_repeated(digits, capsys):
    """An RPN refuses boxes of NaN before there is any loss to look at."""
    trainer = make_trainer(Trainer, digits, **FASTER)
    preprocess = trainer.model.preprocess_image

    def spoil(batch):
        if trainer.iter == 1:
            batch[1]["image"] = batch[1]["image"].float()
            batch[1]["image"][0, 5, 5] = math.nan
        return preprocess(batch)

    trainer.model.preprocess_image = spoil
    with pytest.raises(DivergedError) as stop:
        trainer.train()
    assert "Iteration 1: the forward pass has stopped: Predicted boxes or scores" in str(stop.value)
    assert "images with non-finite pixels: " in str(stop.value)
    again = reproduce_step(get_step_file(digits))
    assert again["losses"] == {}
    assert math.isnan(again["largest"][f"|logit| of {RPN}"])
    assert reproduce([str(get_step_file(digits))]) == 0
    output = capsys.readouterr().out
    assert "iteration 1: the forward pass stops again: Predicted boxes or scores" in output


def test_boxes_between_the_stages_of_a_cascade_are_repeated(digits):
    """Detectron2 asserts that they are finite."""
    message = stop_at_huge_biases(digits, f"{BOX}.0.bbox_pred", **CASCADE)
    assert "Iteration 1: the forward pass has stopped: boxes of a stage of the cascade" in message
    assert f"largest |delta| of {BOX}.0, in evaluation mode: 3e+38" in message
    again = reproduce_step(get_step_file(digits))
    assert again["forward_error"].startswith("boxes of a stage of the cascade: ")


@pytest.mark.parametrize(
    ("keys", "stage", "layer"),
    [
        (FASTER, RPN, "rpn_head.objectness_logits"),
        (FASTER, BOX, "cls_score"),
        (CASCADE, f"{BOX}.2", "bbox_pred"),
    ],
)
def test_diverged_stage_is_found_at_a_checkpoint(keys, stage, layer, digits):
    """Its weights are finite, and no loss has seen them yet."""
    trainer = make_trainer(Trainer, digits, DATASETS__TEST=[], **keys)
    step = trainer.run_step

    def run_step():
        step()
        if trainer.iter == 1:
            with torch.no_grad():
                trainer.model.get_submodule(f"{stage}.{layer}").weight.mul_(1e8)

    trainer.run_step = run_step
    trainer.train()
    kind = "delta" if layer == "bbox_pred" else "logit"
    found = trainer._guard.find_divergence()
    assert found.startswith(f"the largest |{kind}| of {stage} on the last batch is ")
    out = digits.folder / "out"
    assert (out / "diverged_model_final.pth").is_file()
    assert not (out / "last_checkpoint").exists()


def train_in_process(rank, cfg, folder):
    """One of two processes; the second gets a pixel of NaN, which stops its forward pass."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2
    )
    # The other process cannot keep its step: it waits in the backward pass.
    step_guard._WAIT_SECONDS = 0.5
    model = build_model(cfg)
    batches = [make_batch([[16, 16, 52, 52]]) for _ in range(3)]
    if rank == 1:
        batches[1][0]["image"][0, 5, 5] = math.nan
    trainer = SimpleTrainer(
        DistributedDataParallel(model), batches, torch.optim.SGD(model.parameters(), 1e-3)
    )
    trainer.register_hooks([StepGuard(cfg)])
    stop_of_detectron2(trainer, trainer._hooks[0])
    trainer.train(0, 3)


@pytest.mark.parametrize("is_mixed", [False, True], ids=["float32", "mixed precision"])
def test_forward_pass_that_stops_in_one_process_stops_all(is_mixed, tmp_path):
    """In mixed precision, too, where processes agree on skipped steps after the backward pass."""
    keys = {"OUTPUT_DIR": str(tmp_path), "SOLVER.AMP.ENABLED": is_mixed}
    cfg = make_two_stage_cfg("COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml", keys)
    with pytest.raises(multiprocessing.ProcessRaisedException) as stop:
        run_ranks(train_in_process, cfg, tmp_path, num_processes=2)
    assert "DivergedError: Iteration 1: the forward pass has stopped: " in str(stop.value)
    assert get_step_files(tmp_path, 1, 2)[1].is_file()


def test_healthy_two_stage_model_has_not_diverged(digits):
    trainer = make_trainer(Trainer, digits, DATASETS__TEST=[], **FASTER)
    trainer.train()
    assert trainer._guard.find_divergence() is None
    largest = compute_largest_outputs(trainer.model, trainer._guard._batch)
    assert set(largest) == {f"|{x}| of {y}" for x in ("logit", "delta") for y in (RPN, BOX)}
    assert trainer.model.training
    assert not trainer.model.proposal_generator.rpn_head._forward_hooks
