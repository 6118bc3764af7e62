"""Faults of a config and of the weights it names: refused before training starts."""

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.engine import DefaultTrainer
from detectron2.modeling import build_model

from focal_det.checkpoint.checkpointer import HealthyCheckpointer
from focal_det.env import load_config
from focal_det.tools.train import main as train
from tests.conftest import make_batch
from tests.faults.copies import run_check, run_stock
from tests.faults.test_training_faults import make_model, make_trainer


def test_row_22_weights_without_a_matching_key(digits, capsys, fault):
    file = digits.folder / "other.pth"
    torch.save({"model": {f"net.{i}.weight": torch.zeros(3) for i in range(5)}}, file)
    model = make_model(digits)
    with pytest.raises(
        ValueError,
        match=r"the weights contain 0 of the model's \d+ parameter tensors \(5 tensors are in",
    ):
        HealthyCheckpointer(model).load(str(file), checkpointables=[])
    code, output = run_check(digits.write_config(MODEL__WEIGHTS=str(file)), capsys)
    assert code == 2 and "weights that cannot be loaded" in output and str(file) in output
    with pytest.raises(SystemExit):
        train(["--no-check", "--config-file", str(digits.write_config(MODEL__WEIGHTS=str(file)))])
    message = capsys.readouterr().err
    assert f"MODEL.WEIGHTS {file}: " in message and "they belong to another model" in message
    trainer = make_trainer(DefaultTrainer, digits, MODEL__WEIGHTS=str(file))
    trainer.resume_or_load(resume=False)
    fault(
        22,
        "weights file without a matching key",
        stock="SILENT: trains from scratch",
        ours="refused, with the counts",
        seen="goes on",
    )


def test_row_23_missing_weights(digits, capsys, fault):
    code, output = run_check(digits.write_config(MODEL__WEIGHTS="none.pth"), capsys)
    assert code == 2 and "weights that do not exist: none.pth. Correct MODEL.WEIGHTS" in output
    trainer = make_trainer(DefaultTrainer, digits, MODEL__WEIGHTS=str(digits.folder / "none.pth"))
    with pytest.raises(AssertionError, match=r"none\.pth not found"):
        trainer.resume_or_load(resume=False)
    fault(
        23,
        "weights that do not exist",
        stock="stops, and says so",
        ours="found before training",
        seen="AssertionError",
    )


def test_row_37_unregistered_test_set(digits, capsys, fault):
    code, output = run_check(digits.write_config(DATASETS__TEST=["copi"]), capsys)
    assert code == 2 and "DATASETS.TEST: Unknown data set 'copi'." in output
    assert "Did you mean 'copy'" in output
    trainer = make_trainer(DefaultTrainer, digits, DATASETS__TEST=["copi"])
    trainer.run_step = lambda: None
    with pytest.raises(KeyError) as error:
        trainer.test(trainer.cfg, trainer.model)
    fault(
        37,
        "test set that nobody registered",
        stock="found after the training",
        ours="found before, with the nearest name",
        seen=f"in the evaluation, KeyError: {str(error.value)[:60]}",
    )


def train_stock(digits, num_classes):
    """Losses of one step of Detectron2's RetinaNet on objects of 10 classes."""
    cfg = load_config(
        digits.write_config(
            MODEL__RETINANET__NUM_CLASSES=num_classes, MODEL__META_ARCHITECTURE="RetinaNet"
        )
    )
    batch = make_batch([[10, 10, 40, 40], [60, 60, 100, 100]], num_classes=10)
    batch[0]["instances"].gt_classes[:] = 9
    from detectron2.utils.events import EventStorage

    with EventStorage():
        return build_model(cfg).train()(batch)


@pytest.mark.parametrize(
    ("row", "num_classes", "stock"),
    [
        (38, 9, "SILENT: the last class trains as background"),
        (39, 5, "stops with a message about sizes; on a GPU with a device-side assert"),
        (40, 12, "stops in the evaluation, after the training"),
    ],
)
def test_rows_38_to_40_wrong_number_of_classes(row, num_classes, stock, digits, capsys, fault):
    config = digits.write_config(MODEL__RETINANET__NUM_CLASSES=num_classes)
    message = rf"10 classes .* but MODEL\.RETINANET\.NUM_CLASSES is {num_classes}\. Set it to 10"
    with pytest.raises(ValueError, match=message):
        build_model(load_config(config))  # the stock script as well
    code, output = run_check(config, capsys)
    assert code == 2 and "Set MODEL.RETINANET.NUM_CLASSES to 10" in output
    try:
        losses = train_stock(digits, num_classes)
        seen = "trains" if all(x.isfinite() for x in losses.values()) else "not finite"
    except (RuntimeError, IndexError) as error:
        seen = f"{type(error).__name__}: {str(error)[:60]}"
    assert (seen == "trains") == (row != 39)
    if row == 40:  # and once in a while the model finds a class that is not there
        seen = f"trains, then {run_stock(digits.json, digits.images, shift=2)}"
        assert (
            "stops in evaluation, after the training: AssertionError: A prediction has class="
            in seen
        )
    what = {
        38: "`NUM_CLASSES` one too small",
        39: "`NUM_CLASSES` smaller still",
        40: "`NUM_CLASSES` too large",
    }[row]
    fault(
        row, what, stock=stock, ours="refused before the training, with the right number", seen=seen
    )


@pytest.mark.parametrize("num_classes", [4, 7])
def test_classes_of_own_data_set_are_compared(num_classes, make_cfg, batch, clean_catalog):
    """Under the stock script, they are known by the first step, not when the model is built."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    DatasetCatalog.register("own", lambda: [])
    model = build_model(
        make_cfg("DATASETS.TRAIN", ("own",), "MODEL.RETINANET.NUM_CLASSES", num_classes)
    ).train()
    MetadataCatalog.get("own").thing_classes = list("abcde")
    with pytest.raises(
        ValueError,
        match=rf"Data set own has 5 classes \(a, b, c, d, e\), .* is {num_classes}. Set it to 5",
    ):
        model(batch)


def test_row_41_typo_in_the_config(digits, capsys, fault):
    code, output = run_check(digits.write_config(SOLVER__BASE_LRR=0.1), capsys)
    assert (
        code == 2
        and "config.yaml: SOLVER.BASE_LRR: Unknown key of SOLVER 'BASE_LRR'. Did you mean" in output
    )
    code, output = run_check(digits.write_config(), capsys, "SOLVER.BASE_LRR", "1")
    assert code == 2 and "Did you mean 'BASE_LR'?" in output
    code, output = run_check(digits.write_config(SOLVER__BASE_LR="fast"), capsys)
    assert code == 2 and "config.yaml" in output and "config key: SOLVER.BASE_LR" in output
    with pytest.raises(AssertionError) as error:
        get_cfg().merge_from_list(["SOLVER.BASE_LRR", "1"])
    fault(
        41,
        "config key with a typo, or of the wrong type",
        stock="stops, with the key",
        ours="with the file and the nearest key",
        seen=str(error.value),
    )


def test_row_46_config_that_runs_code(digits, capsys, fault):
    folder = digits.folder / "made_by_yaml"
    base = digits.write_config()
    evil = digits.folder / "evil.yaml"
    evil.write_text(f"_BASE_: {base}\nOUTPUT_DIR: !!python/object/apply:os.mkdir ['{folder}']\n")
    through = digits.folder / "through.yaml"
    through.write_text(f"_BASE_: {evil}\n")
    for config in (evil, through):
        code, output = run_check(config, capsys)
        assert code == 2 and not folder.exists()
        assert (
            f"{evil} runs code when it is read, line 2" in output
            and "python/object/apply:os.mkdir" in output
        )
    with pytest.raises(TypeError):  # asked, it runs: mkdir returns None, which is no folder
        load_config(through, unsafe_yaml=True).OUTPUT_DIR + ""
    assert folder.is_dir()
    folder.rmdir()
    get_cfg().load_yaml_with_base(str(through), allow_unsafe=True)
    seen = "runs it" if folder.is_dir() else "does not"
    fault(
        46,
        "yaml with `!!python/...`, also through `_BASE_`",
        stock="runs the code",
        ours="refused, with file and line",
        seen=seen,
    )


@pytest.mark.parametrize("architecture", ["RetinaNet", "GeneralizedRCNN"])
def test_other_architectures_train_on_own_data_sets(architecture, digits, capsys):
    """They neither register data sets nor read MODEL.RETINANET."""
    keys = {"MODEL__META_ARCHITECTURE": architecture}
    if architecture == "GeneralizedRCNN":
        keys |= {
            "MODEL__ROI_HEADS__NUM_CLASSES": 10,
            "MODEL__ROI_HEADS__NAME": "StandardROIHeads",
            "MODEL__ROI_HEADS__IN_FEATURES": ["p3", "p4"],
            "MODEL__RPN__IN_FEATURES": ["p3", "p4", "p5", "p6", "p7"],
            "MODEL__ROI_BOX_HEAD__NAME": "FastRCNNConvFCHead",
            "MODEL__ROI_BOX_HEAD__NUM_FC": 1,
            "MODEL__ROI_BOX_HEAD__POOLER_TYPE": "ROIPool",
        }
    config = digits.write_config(**keys)
    code, output = run_check(config, capsys)
    assert code == 0, output
    if architecture == "RetinaNet":
        train(["--config-file", str(config)])
        assert (digits.folder / "out" / "model_final.pth").is_file()
        return
    assert "\nROI head: random samples of 512 proposals" in output
    code, output = run_check(config, capsys, "MODEL.ROI_HEADS.NUM_CLASSES", "9")
    assert code == 2 and "Set MODEL.ROI_HEADS.NUM_CLASSES to 10" in output
