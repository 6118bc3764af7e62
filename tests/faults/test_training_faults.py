"""Faults of config, weights and optimization: refused, or stopped before a step."""

import re

import pytest
import torch
from detectron2.engine import DefaultTrainer, SimpleTrainer, default_setup
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import distributed, multiprocessing
from torch.nn.parallel import DistributedDataParallel

from focal_det.data.catalog import register_datasets
from focal_det.engine.nonfinite_step import reproduce_step
from focal_det.engine.step_guard import DivergedError, StepGuard
from focal_det.engine.trainer import Trainer
from focal_det.env import load_config
from focal_det.tools.train import main as train
from tests.conftest import make_batch, run_ranks
from tests.faults.copies import run_check

NAN = float("nan")


class Arguments:
    """The attributes that `default_setup` reads."""

    config_file, eval_only = "", False


def make_trainer(kind, digits, **keys):
    cfg = load_config(digits.write_config(**keys))
    default_setup(cfg, Arguments())
    register_datasets(cfg.MODEL.FOCAL_DET.DATASETS, source="test")
    return kind(cfg)


def make_model(digits, **keys):
    return build_model(load_config(digits.write_config(**keys)))


def diverge(trainer, iteration):
    """Make the weights huge, but finite, after the step of one iteration."""
    step = trainer.run_step

    def run_step():
        step()
        if trainer.iter == iteration:
            with torch.no_grad():
                trainer.model.head.cls_score.weight.mul_(1e36)

    trainer.run_step = run_step


def resume(kind, digits):
    trainer = make_trainer(kind, digits, SOLVER__MAX_ITER=5, SOLVER__CHECKPOINT_PERIOD=10)
    trainer.resume_or_load(resume=True)
    trainer.train()
    return trainer


def test_row_11_diverged_checkpoint_is_not_the_last(digits, fault):
    out = digits.folder / "out"
    for kind, last in ((Trainer, "model_0000001.pth"), (DefaultTrainer, "model_0000003.pth")):
        trainer = make_trainer(kind, digits, SOLVER__MAX_ITER=5, SOLVER__CHECKPOINT_PERIOD=2)
        diverge(trainer, 3)
        with pytest.raises(FloatingPointError):
            trainer.train()
        assert (out / "last_checkpoint").read_text() == last
        if kind is Trainer:
            assert (out / "diverged_model_0000003.pth").is_file() and not (
                out / "model_0000003.pth"
            ).exists()
            again = resume(Trainer, digits)
            assert again.start_iter == 2 and all(
                x.isfinite().all() for x in again.model.state_dict().values()
            )
    with pytest.raises(FloatingPointError):
        resume(DefaultTrainer, digits)
    stock = "saves and tags it; every resumed run stops at once"
    ours = "saved separately; resuming uses the healthy one before it"
    fault(
        11,
        "diverged (huge but finite) weights at a checkpoint",
        stock=stock,
        ours=ours,
        seen="a resumed run stops at once",
    )


def test_finite_model_with_a_huge_loss_has_diverged(digits):
    trainer = make_trainer(Trainer, digits, SOLVER__MAX_ITER=3, SOLVER__CHECKPOINT_PERIOD=10)
    old_step = trainer.run_step

    def run_step():
        old_step()
        if trainer.iter == 0:
            with torch.no_grad():
                trainer.model.head.cls_score.bias.add_(1e3)

    trainer.run_step = run_step
    trainer.train()
    assert trainer._guard.find_divergence().startswith("the loss is ")
    assert (digits.folder / "out" / "diverged_model_final.pth").is_file() and not (
        digits.folder / "out" / "last_checkpoint"
    ).exists()


def break_gradient(trainer, iteration):
    """NaN in the gradient of `cls_score` of one iteration, with finite losses."""
    weight = trainer.model.head.cls_score.weight
    weight.register_hook(lambda grad: grad * NAN if trainer.iter == iteration else grad)


def test_row_12_nonfinite_gradient_is_not_stepped(digits, fault):
    trainer = make_trainer(Trainer, digits)
    break_gradient(trainer, 1)
    with pytest.raises(DivergedError) as stop:
        trainer.train()
    message, out = str(stop.value), digits.folder / "out"
    assert "Iteration 1: a gradient is non-finite" in message and "head.cls_score.weight" in message
    assert (
        message.count(".png") == 2
        and "largest |logit|" in message
        and "start again with a lower SOLVER.BASE_LR" in message
    )
    assert all(x.isfinite().all() for x in trainer.model.state_dict().values())
    kept = torch.load(out / "nonfinite_step_0000001_rank0.pth", weights_only=True)
    assert all(torch.equal(v, trainer.model.state_dict()[k]) for k, v in kept["model"].items())
    assert not (out / "last_checkpoint").exists()

    stock = make_trainer(DefaultTrainer, digits)
    break_gradient(stock, 1)
    stock.train()
    seen = (
        "NaN weights saved as model_final.pth"
        if not stock.model.head.cls_score.weight.isfinite().all()
        else "finite"
    )
    assert seen.startswith("NaN")
    fault(
        12,
        "gradient that is not finite, with a finite loss",
        stock="SILENT: NaN weights are saved, and noticed a step later",
        ours="stopped before the optimizer's step",
        seen=seen,
    )


class NonFiniteLoss:
    """`loss_cls` of NaN in one iteration, as a loss that overflows gives it."""

    def __init__(self, model, trainer, iteration):
        self.losses, self.trainer, self.iteration = model.losses, trainer, iteration

    def __call__(self, *args):
        losses = self.losses(*args)
        return (
            {**losses, "loss_cls": losses["loss_cls"] * NAN}
            if self.trainer.iter == self.iteration
            else losses
        )


def test_row_14_nonfinite_loss_is_named_and_kept(digits, fault):
    trainer = make_trainer(Trainer, digits)
    trainer.model.losses = NonFiniteLoss(trainer.model, trainer, 1)
    with pytest.raises(DivergedError) as stop:
        trainer.train()
    message = str(stop.value)
    assert "Iteration 1: loss_cls is nan (loss_box_reg" in message and message.count(".png") == 2
    assert re.search(r"gradients: those of \d+ parameters are non-finite: backbone", message)
    file = digits.folder / "out" / "nonfinite_step_0000001_rank0.pth"
    assert f"focal-det reproduce {file}" in message
    file.unlink()
    before = set(file.parent.iterdir())
    stock = make_trainer(DefaultTrainer, digits)
    stock.model.losses = NonFiniteLoss(stock.model, stock, 1)
    with pytest.raises(FloatingPointError) as error:
        stock.train()
    new = sorted(x.name for x in set(file.parent.iterdir()) - before if x.suffix == ".pth")
    fault(
        14,
        "loss that is not finite",
        stock="stops; neither batch nor state are kept",
        ours="names term and images, keeps batch and state",
        seen=f"{type(error.value).__name__}: {str(error.value).splitlines()[0]}; kept: {new}",
    )


def test_kept_step_reproduces_nonfinite_pixels(digits):
    """The image is named, and the kept state has batch norm as it was before the step."""
    trainer = make_trainer(Trainer, digits)
    preprocess, seen = trainer.model.preprocess_image, []

    def spoil(batch):
        if trainer.iter == 1 and trainer.model.training:
            seen.append({k: v.clone() for k, v in trainer.model.state_dict().items()})
            batch[1]["image"] = batch[1]["image"].float()
            batch[1]["image"][0, 5, 5] = NAN
        return preprocess(batch)

    trainer.model.preprocess_image = spoil
    with pytest.raises(DivergedError, match=r"images with non-finite pixels: .*png") as stop:
        trainer.train()
    assert "Iteration 1: loss_cls is nan" in str(stop.value)
    file = digits.folder / "out" / "nonfinite_step_0000001_rank0.pth"
    kept = torch.load(file, weights_only=True)["model"]
    assert all(torch.equal(kept[k], v) for k, v in seen[0].items())
    again = reproduce_step(file)
    assert again["iteration"] == 1 and again["losses"]["loss_cls"] != again["losses"]["loss_cls"]
    assert (
        "head.cls_score.weight" in again["nonfinite_gradients"]
        and again["largest"]["|logit|"] != again["largest"]["|logit|"]
    )
    assert again["images"][1] in str(stop.value)


def train_in_process(rank, cfg, folder, is_guarded):
    """One of two processes; what it raises ends the other, as under Detectron2's `launch`."""
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder / 'store'}", rank=rank, world_size=2
    )
    from detectron2.utils import comm

    if hasattr(comm, "create_local_process_group"):
        comm.create_local_process_group(2)
    model = build_model(cfg)
    batches = [make_batch([[16, 16, 52, 52]], [[30, 40, 110, 120]]) for _ in range(3)]
    trainer = SimpleTrainer(
        DistributedDataParallel(model), batches, torch.optim.SGD(model.parameters(), 1e-3)
    )
    if rank == 1:
        model.losses = NonFiniteLoss(model, trainer, 1)
    if is_guarded:
        guard = StepGuard(cfg)
        trainer.register_hooks([guard])
        stop_of_detectron2(trainer, guard)
    trainer.train(0, 3)


def stop_of_detectron2(trainer, guard):
    """As in Trainer."""
    run_step = trainer.run_step

    def run():
        try:
            run_step()
        except DivergedError:
            raise
        except FloatingPointError as error:
            guard.stop_for(error)

    trainer.run_step = run


def test_row_15_nonfinite_loss_in_one_of_two_processes(make_cfg, tmp_path, fault):
    cfg = make_cfg("OUTPUT_DIR", str(tmp_path))
    with pytest.raises(multiprocessing.ProcessRaisedException) as stock:
        run_ranks(train_in_process, cfg, tmp_path, False, num_processes=2)
    assert "FloatingPointError: Loss became infinite or NaN" in str(stock.value) and not list(
        tmp_path.glob("*.pth")
    )
    (tmp_path / "store").unlink()
    with pytest.raises(multiprocessing.ProcessRaisedException) as stop:
        run_ranks(train_in_process, cfg, tmp_path, True, num_processes=2)
    assert "DivergedError: Iteration 1: " in str(stop.value)
    kept = [
        torch.load(tmp_path / f"nonfinite_step_0000001_rank{rank}.pth", weights_only=True)
        for rank in range(2)
    ]
    assert all(x.isfinite().all() for x in kept[1]["model"].values())
    assert all(
        torch.equal(v, kept[1]["model"][k])
        for k, v in kept[0]["model"].items()
        if "normalizer" not in k
    )
    fault(
        15,
        "loss that is not finite in one process of two",
        stock="all stop; nothing is kept",
        ours="all stop; each keeps its step",
        seen="FloatingPointError; nothing kept",
    )


def test_row_13_learning_rate_of_nan_is_refused(digits, capsys, fault):
    config = digits.write_config(SOLVER__BASE_LR=NAN)
    with pytest.raises(ValueError, match=r"numbers that are not finite: SOLVER\.BASE_LR nan"):
        build_model(load_config(config))  # the stock script as well
    code, output = run_check(config, capsys)
    assert code == 2 and "SOLVER.BASE_LR: nan" in output
    stock = make_trainer(
        DefaultTrainer, digits, SOLVER__BASE_LR=NAN, MODEL__META_ARCHITECTURE="RetinaNet"
    )
    with pytest.raises((FloatingPointError, TypeError, AssertionError)) as error:
        stock.train()
    message = str(error.value).splitlines()[0]
    assert "BASE_LR" not in message and not all(
        x.isfinite().all() for x in stock.model.parameters()
    )
    seen = f"{type(error.value).__name__}: {message}"
    fault(
        13,
        "`BASE_LR: .nan`",
        stock="steps with it, then stops without naming it",
        ours="refused, by key",
        seen=seen,
    )


def test_row_48_box_without_anchors(make_cfg, fault):
    cfg = make_cfg()
    batch = make_batch([[10, 10, 10, 40]])
    instances = Instances(
        (128, 128), gt_boxes=Boxes(torch.tensor([[10.0, 10, 10, 40]])), gt_classes=torch.tensor([1])
    )
    counts = []
    for name in ("FocalRetinaNet", "RetinaNet"):
        cfg.MODEL.META_ARCHITECTURE = name
        model = build_model(cfg)
        features = model.backbone(model.preprocess_image(batch).tensor)
        anchors = model.anchor_generator([features[x] for x in ("p3", "p4", "p5", "p6", "p7")])
        (labels,), _ = model.label_anchors(anchors, [instances])
        counts.append(int(((labels >= 0) & (labels < 5)).sum()))
    assert counts[0] == 0 and counts[1] == sum(map(len, anchors))
    fault(
        48,
        "box that no anchor overlaps (no area, NaN, off the canvas) reaching the labels",
        stock="SILENT: every anchor of the image becomes a positive",
        ours="gets none; counted and reported",
        seen=f"{counts[1]} of {counts[1]} anchors positive",
    )


def test_resumed_run_does_not_need_its_first_weights(digits):
    weights = digits.folder / "w.pth"
    torch.save({"model": make_model(digits).state_dict()}, weights)
    config = str(digits.write_config(MODEL__WEIGHTS=str(weights), SOLVER__BASE_LR=0.001))
    train(["--config-file", config])
    weights.unlink()
    train(["--resume", "--config-file", config, "SOLVER.MAX_ITER", "3"])
    assert (
        torch.load(digits.folder / "out" / "model_final.pth", weights_only=False)["iteration"] == 2
    )


def test_findings_are_logged(digits):
    digits.content["annotations"][0]["bbox"][2] = 0
    digits.save()
    train(["--config-file", str(digits.write_config())])
    assert (
        "check: warning: CHK311 box without area" in (digits.folder / "out" / "log.txt").read_text()
    )


def test_image_that_breaks_after_the_check_is_named(digits):
    for image in digits.content["images"]:
        (digits.images / image["file_name"]).write_bytes(b"no image")
    message = (
        r"Traceback(?s:.)*\nValueError: Image .*\.png: UnidentifiedImageError: .*focal-det check"
    )
    with pytest.raises(SystemExit, match=message):
        train(["--no-check", "--config-file", str(digits.write_config())])


def test_kept_step_needs_no_data_set(digits):
    trainer = make_trainer(Trainer, digits)
    trainer.model.losses = NonFiniteLoss(trainer.model, trainer, 1)
    with pytest.raises(DivergedError):
        trainer.train()
    digits.json.unlink()
    again = reproduce_step(digits.folder / "out" / "nonfinite_step_0000001_rank0.pth")
    assert (
        again["iteration"] == 1 and again["losses"]["loss_cls"] > 0
    )  # it was the test that spoilt it


def test_run_that_ends_diverged_exits_with_the_reason(digits, monkeypatch):
    monkeypatch.setattr("focal_det.engine.step_guard._MAX_OUTPUT", 1e-3)
    message = r"^diverged: at the end of the run, the largest \|logit\| on the last batch is "
    with pytest.raises(SystemExit, match=message):
        train(["--no-check", "--config-file", str(digits.write_config())])
    assert (digits.folder / "out" / "diverged_model_final.pth").is_file()
