"""A folder that holds an earlier run: resumed, evaluated, refused or overwritten."""

import json

import detectron2
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog

from focal_det.engine.trainer import Trainer
from focal_det.env import load_config
from focal_det.modeling.build import flatten_config
from focal_det.tools.train import main as train
from tests.conftest import run_program
from tests.faults.copies import refuse_train, run_train


def read_checkpoint(file):
    return torch.load(file, map_location="cpu", weights_only=True)


def read_log(digits):
    return (digits.folder / "out" / "log.txt").read_text()


def get_iterations(digits):
    lines = (digits.folder / "out" / "metrics.json").read_text().splitlines()
    return [x["iteration"] for x in map(json.loads, lines) if "loss_cls" in x]


@pytest.fixture
def finished(digits):
    """The config and the folder of a run of two iterations, which was not evaluated."""
    config = digits.write_config(DATASETS__TEST=[], SOLVER__BASE_LR=0.01)
    run_train(config)
    return config, digits.folder / "out"


# --- evaluation


def test_eval_only_takes_the_weights_of_the_run(digits, monkeypatch):
    config = digits.write_config(DATASETS__TEST=[])
    run_train(config)
    evaluated = []
    monkeypatch.setattr(
        Trainer, "test", staticmethod(lambda cfg, model: evaluated.append(model.state_dict()) or {})
    )
    run_train(config, "--eval-only")
    trained = read_checkpoint(digits.folder / "out" / "model_final.pth")["model"]
    assert all(torch.equal(evaluated[0][k], v) for k, v in trained.items())
    assert f"evaluating {digits.folder / 'out' / 'model_final.pth'}" in read_log(digits)


def test_eval_only_without_any_weights_is_refused(digits, capsys):
    message = refuse_train(capsys, digits.write_config(), "--eval-only")
    assert "there is nothing to evaluate" in message and "MODEL.WEIGHTS is empty" in message
    assert not (digits.folder / "out").exists()


def test_eval_only_refuses_weights_of_a_backbone(finished, capsys, tmp_path):
    config, out = finished
    model = read_checkpoint(out / "model_final.pth")["model"]
    backbone = {k: v for k, v in model.items() if k.startswith("backbone.")}
    torch.save({"model": backbone}, tmp_path / "backbone.pth")
    words = ["MODEL.WEIGHTS", str(tmp_path / "backbone.pth")]
    message = refuse_train(capsys, config, "--eval-only", *words)
    assert "MODEL.WEIGHTS" in message and "head.cls_subnet.0.weight is not in the file" in message


def test_eval_only_takes_weights_of_the_command_line(finished, tmp_path, digits):
    config, out = finished
    named = tmp_path / "named.pth"
    named.write_bytes((out / "model_final.pth").read_bytes())
    run_train(config, "--eval-only", "MODEL.WEIGHTS", str(named))
    assert f"evaluating {named}" in read_log(digits)


def test_eval_only_of_the_starting_weights_is_ambiguous(finished, tmp_path, capsys):
    """As if the command of the run were repeated with --eval-only added."""
    config, out = finished
    start = tmp_path / "start.pth"
    start.write_bytes((out / "model_final.pth").read_bytes())
    words = ["MODEL.WEIGHTS", str(start)]
    run_train(config, "--overwrite", *words)
    message = refuse_train(capsys, config, "--eval-only", *words)
    assert f"the run in {out} started from MODEL.WEIGHTS {start}" in message


def test_eval_only_with_another_model_warns(finished, capsys):
    """Anchors of other sizes, but as many, so that the weights fit."""
    words = [
        "MODEL.ANCHOR_GENERATOR.SIZES",
        "[[8,10,12],[16,20,25],[32,40,50],[64,80,101],[128,161,203]]",
    ]
    run_train(finished[0], "--eval-only", *words)
    assert "MODEL.ANCHOR_GENERATOR.SIZES: " in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--no-check"], ["--no-check", "--eval-only"]])
def test_weights_that_do_not_exist_are_one_line(words, digits, capsys):
    config = digits.write_config(DATASETS__TEST=[])
    with pytest.raises(SystemExit) as error:
        train([*words, "--config-file", str(config), "MODEL.WEIGHTS", "nowhere.pth"])
    message = capsys.readouterr().err
    assert error.value.code == 2 and "MODEL.WEIGHTS nowhere.pth: it does not exist" in message


def test_eval_only_leaves_the_config_of_the_run(finished):
    config, out = finished
    before = (out / "config.yaml").read_text()
    run_train(config, "--eval-only", "INPUT.MIN_SIZE_TEST", "64")
    assert (out / "config.yaml").read_text() == before


# --- a used folder


def test_overwrite_leaves_nothing_of_the_earlier_run(digits, finished):
    config, out = finished
    for name in ("model_0000099", "diverged_model_final", "nonfinite_step_0000009_rank0"):
        (out / f"{name}.pth").write_bytes(b"of the earlier run")
    (out / "notes.txt").write_text("of a person")
    run_train(config, "--overwrite", "SOLVER.MAX_ITER", "1")
    assert get_iterations(digits) == [0]
    assert {x.name for x in out.glob("*.pth")} == {"model_final.pth"}
    assert (out / "notes.txt").is_file()


def test_overwrite_keeps_the_weights_it_starts_from(finished, capsys):
    config, out = finished
    words = ["MODEL.WEIGHTS", str(out / "model_final.pth")]
    assert "--overwrite would remove MODEL.WEIGHTS" in refuse_train(
        capsys, config, "--overwrite", *words
    )
    assert (out / "model_final.pth").is_file()


def test_overwrite_without_a_run_removes_nothing(digits):
    out = digits.folder / "out"
    (out / "inference").mkdir(parents=True)
    files = [out / "log.txt", out / "inference" / "mine.py", out / "curves.png"]
    for file in files:
        file.write_text("mine")
    run_train(digits.write_config(DATASETS__TEST=[]), "--overwrite", "SOLVER.MAX_ITER", "1")
    assert all("mine" in x.read_text() for x in files)


def test_overwrite_and_resume_exclude_each_other(finished, capsys):
    assert "--overwrite starts a new run" in refuse_train(
        capsys, finished[0], "--resume", "--overwrite"
    )


def test_resume_without_a_readable_checkpoint_is_refused(finished, capsys):
    config, out = finished
    (out / "last_checkpoint").unlink()
    (out / "model_final.pth").write_bytes(b"PK cut off")
    assert "has no checkpoint that a run can resume from" in refuse_train(
        capsys, config, "--resume"
    )


def test_resume_without_checkpoint_takes_any_settings(digits):
    config = digits.write_config(DATASETS__TEST=[], SOLVER__BASE_LR=0.01)
    out = digits.folder / "out"
    run_train(config, "SOLVER.MAX_ITER", "1")
    for file in (*out.glob("model_*.pth"), out / "last_checkpoint"):
        file.unlink()
    run_train(config, "--resume", "SOLVER.BASE_LR", "0.001")
    assert read_checkpoint(out / "model_final.pth")["iteration"] == 1


def test_resume_with_broken_checkpoints_alone_is_refused(finished, capsys):
    config, out = finished
    (out / "model_final.pth").write_bytes((out / "model_final.pth").read_bytes()[:5000])
    message = refuse_train(capsys, config, "--resume")
    assert "has no checkpoint that a run can resume from" in message
    assert f"{out / 'model_final.pth'} is skipped: it is damaged" in message


def test_resume_skips_a_damaged_checkpoint_and_logs_why(digits):
    """A flipped bit in a weight of the tagged checkpoint, and half a file of a killed process."""
    config = digits.write_config(DATASETS__TEST=[], SOLVER__CHECKPOINT_PERIOD=1)
    out = digits.folder / "out"
    run_train(config)
    damaged = out / (out / "last_checkpoint").read_text()
    data = bytearray(damaged.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    (out / ".model_0000007.pth.0123abcd.part").write_bytes(b"half")
    words = ["train", "--no-check", "--config-file", config, "--resume"]
    run_program(*words, "SOLVER.MAX_ITER", "3")
    log = read_log(digits)
    assert f"{damaged} is skipped: it is damaged: the checksum of" in log
    assert "Starting training from iteration 2\n" in log
    assert not list(out.glob(".*.part"))


# --- a resume with other settings


CHANGES = {
    "SOLVER.BASE_LR": "0.02",
    "SOLVER.IMS_PER_BATCH": "1",
    "MODEL.FOCAL_DET.CLS_LOSS.NAME": "PolyFocalLoss",
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": "1.0",
    "SEED": "7",
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": "[[1.0]]",
}


def test_resume_with_other_settings_names_the_keys(finished, capsys):
    config, out = finished
    for key, value in CHANGES.items():
        message = refuse_train(capsys, config, "--resume", "SOLVER.MAX_ITER", "3", key, value)
        before = load_config(config)
        for part in key.split("."):
            before = before[part]
        shown = f"{key}: {before} before, {value} now"
        assert shown in message and message.count(" before, ") == 1
        assert message.endswith(f"--allow-changes {key}\n")
    assert yaml.safe_load((out / "config.yaml").read_text())["SOLVER"]["MAX_ITER"] == 2


ARGS = "MODEL.FOCAL_DET.CLS_LOSS.ARGS"


def test_arguments_that_only_a_file_has_are_compared(digits, capsys):
    """Gamma has a key of Detectron2; a key under ARGS exists only if a file sets it."""
    node = {"FocalLoss": {"gamma": 5.0}}
    run_train(digits.write_config(DATASETS__TEST=[], MODEL__FOCAL_DET__CLS_LOSS__ARGS=node))
    message = refuse_train(capsys, digits.write_config(DATASETS__TEST=[]), "--resume")
    assert f"{ARGS}.FocalLoss.gamma: 5.0 before, None now" in message


def test_arguments_of_another_loss_may_change(finished, digits):
    key = f"{ARGS}.PolyFocalLoss.epsilon"
    assert key in flatten_config(load_config(finished[0]))
    run_train(finished[0], "--resume", "SOLVER.MAX_ITER", "3", key, "0.5")
    assert "Starting training from iteration 2" in read_log(digits)


def test_another_length_is_noted(finished, capsys):
    run_train(finished[0], "--resume")
    assert "note: SOLVER.MAX_ITER" not in capsys.readouterr().out
    run_train(finished[0], "--resume", "SOLVER.MAX_ITER", "3")
    assert "note: SOLVER.MAX_ITER: 2 before, 3 now" in capsys.readouterr().out


def test_length_may_change_if_learning_rates_do_not(finished, capsys):
    config = finished[0]
    cosine = ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR"]
    run_train(config, "--overwrite", *cosine)
    message = refuse_train(capsys, config, "--resume", *cosine, "SOLVER.MAX_ITER", "4")
    assert "SOLVER.MAX_ITER: 2 before, 4 now" in message


def test_resume_with_classes_in_another_order_is_refused(finished, digits, capsys):
    names = [x["name"] for x in digits.content["categories"]]
    for category, name in zip(digits.content["categories"], reversed(names)):
        category["name"] = name
    digits.save()
    MetadataCatalog.pop("copy")
    DatasetCatalog.pop("copy")
    message = refuse_train(capsys, finished[0], "--resume", "SOLVER.MAX_ITER", "3")
    assert "it was trained with the classes 0, 1, 2" in message


def test_change_of_the_parameter_groups_is_refused(finished, capsys):
    words = ["--allow-changes", "SOLVER", "SOLVER.MAX_ITER", "3", "SOLVER.BIAS_LR_FACTOR", "2.0"]
    if detectron2.__version__.startswith("0.5"):  # a group for each parameter, whatever the factor
        run_train(finished[0], "--resume", *words)
        return
    message = refuse_train(capsys, finished[0], "--resume", *words)
    assert "the state of its optimizer does not fit" in message and "BIAS_LR_FACTOR" in message


def test_resume_may_change_what_is_not_learnt(digits, finished):
    words = ["SOLVER.MAX_ITER", "3", "VIS_PERIOD", "5", "INPUT.MIN_SIZE_TEST", "64"]
    run_train(finished[0], "--resume", *words)
    assert "Starting training from iteration 2" in read_log(digits)


def test_allowed_change_of_the_learning_rate_is_used(digits, finished):
    words = ["SOLVER.MAX_ITER", "4", "SOLVER.BASE_LR", "0.003", "SOLVER.MOMENTUM", "0.5"]
    allowed = ["--allow-changes", "SOLVER.BASE_LR,SOLVER.MOMENTUM"]
    run_train(finished[0], "--resume", *allowed, *words)
    lines = (digits.folder / "out" / "metrics.json").read_text().splitlines()
    rates = {x["iteration"]: x["lr"] for x in map(json.loads, lines) if "lr" in x}
    assert rates[3] == pytest.approx(0.003)
    saved = read_checkpoint(digits.folder / "out" / "model_final.pth")
    groups = str({k: v for k, v in saved.items() if k not in ("model", "config")})
    assert "'momentum': 0.5" in groups and "'momentum': 0.9" not in groups


def test_one_allowed_change_allows_no_other(finished, capsys):
    words = ["SOLVER.BASE_LR", "0.003", "SOLVER.IMS_PER_BATCH", "1"]
    message = refuse_train(
        capsys, finished[0], "--resume", "--allow-changes", "SOLVER.BASE_LR", *words
    )
    assert "SOLVER.IMS_PER_BATCH: 2 before, 1 now" in message and "BASE_LR: " not in message
    assert message.endswith("--allow-changes SOLVER.BASE_LR,SOLVER.IMS_PER_BATCH\n")


def test_resume_with_other_anchors_names_the_keys(finished, capsys):
    words = ["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[1.0]]", "SOLVER.MAX_ITER", "3"]
    allowed = ["--allow-changes", "MODEL.ANCHOR_GENERATOR"]
    message = refuse_train(capsys, finished[0], "--resume", *allowed, *words)
    assert "head.cls_score.weight is (90, 64, 3, 3) in the file and (30, 64, 3, 3)" in message
    assert "MODEL.ANCHOR_GENERATOR" in message and "model_final.pth" in message


def test_seed_is_kept_without_config_yaml(digits):
    config = digits.write_config(DATASETS__TEST=[], SEED=-1)
    run_train(config)
    out = digits.folder / "out"
    seed = yaml.safe_load((out / "config.yaml").read_text())["SEED"]
    (out / "config.yaml").unlink()
    run_train(config, "--resume", "SOLVER.MAX_ITER", "3")
    assert yaml.safe_load((out / "config.yaml").read_text())["SEED"] == seed >= 0
    assert f"this run keeps its first seed, {seed}" in read_log(digits)


def test_seed_that_was_not_recorded_is_drawn(digits):
    """After a run of Detectron2's own script, whose config.yaml has SEED -1."""
    config = digits.write_config(DATASETS__TEST=[], SEED=-1)
    run_train(config)
    file = digits.folder / "out" / "model_final.pth"
    content = read_checkpoint(file)
    content["config"] = content["config"].replace("SEED:", "SEED: -1 #")
    torch.save(content, file)
    run_train(config, "--resume", "SOLVER.MAX_ITER", "3")
    assert "of this run recorded none: it continues with" in read_log(digits)


# --- the end of a run


def test_finished_run_reports_that_nothing_is_left(digits, finished):
    run_train(finished[0], "--resume")
    assert "all 2 iterations of this run are done, and nothing is left to train" in read_log(digits)


def test_checkpoints_hold_class_names_and_config(finished):
    content = read_checkpoint(finished[1] / "model_final.pth")
    assert content["class_names"] == [str(i) for i in range(10)]
    assert yaml.safe_load(content["config"])["SOLVER"]["BASE_LR"] == 0.01
    assert content["versions"]["torch"] == torch.__version__


def test_resume_with_another_version_says_so(finished, digits):
    file = finished[1] / "model_final.pth"
    content = read_checkpoint(file)
    content["versions"]["torch"] = "1.0"
    torch.save(content, file)
    run_train(finished[0], "--resume", "SOLVER.MAX_ITER", "3")
    assert "continuing exactly after iteration 1, except for rounding: torch 1.0 before" in (
        read_log(digits)
    )
