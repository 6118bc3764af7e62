"""Runs of `focal-det train` in a folder that holds an earlier run: resumed, evaluated, refused or overwritten."""

import json

import pytest
import torch
import yaml

from focal_det.engine.output_dir import find_last_checkpoint
from focal_det.engine.trainer import Trainer
from focal_det.env import load_config
from focal_det.tools.train import main as train


def run(config, *words):
    train(["--no-check", "--config-file", str(config), *words])


def refuse(capsys, config, *words):
    """The message of a command that is refused with exit code 2."""
    with pytest.raises(SystemExit) as error:
        run(config, *words)
    assert error.value.code == 2
    return capsys.readouterr().err


def read_checkpoint(file):
    return torch.load(file, map_location="cpu", weights_only=True)


def read_log(digits):
    return (digits.folder / "out" / "log.txt").read_text()


def get_iterations(digits):
    lines = (digits.folder / "out" / "metrics.json").read_text().splitlines()
    return [x["iteration"] for x in map(json.loads, lines) if "loss_cls" in x]


@pytest.fixture
def finished(digits):
    """A run of two iterations, not evaluated: its config, and its folder."""
    config = digits.write_config(DATASETS__TEST=[], SOLVER__BASE_LR=0.01)
    run(config)
    return config, digits.folder / "out"


# --- evaluation


def test_eval_only_takes_the_weights_of_the_run(digits, monkeypatch):
    config = digits.write_config(DATASETS__TEST=[])
    run(config)
    evaluated = []
    monkeypatch.setattr(
        Trainer, "test", staticmethod(lambda cfg, model: evaluated.append(model.state_dict()) or {})
    )
    run(config, "--eval-only")
    trained = read_checkpoint(digits.folder / "out" / "model_final.pth")["model"]
    assert all(torch.equal(evaluated[0][k], v) for k, v in trained.items())
    assert f"evaluating {digits.folder / 'out' / 'model_final.pth'}" in read_log(digits)


def test_eval_only_without_any_weights_is_refused(digits, capsys):
    message = refuse(capsys, digits.write_config(), "--eval-only")
    assert "there is nothing to evaluate" in message and "MODEL.WEIGHTS is empty" in message
    assert not (digits.folder / "out").exists()


def test_eval_only_refuses_weights_of_a_part_of_the_model(finished, capsys, tmp_path):
    config, out = finished
    model = read_checkpoint(out / "model_final.pth")["model"]
    backbone = {k: v for k, v in model.items() if k.startswith("backbone.")}
    torch.save({"model": backbone}, tmp_path / "backbone.pth")
    words = ["MODEL.WEIGHTS", str(tmp_path / "backbone.pth")]
    message = refuse(capsys, config, "--eval-only", *words)
    assert "MODEL.WEIGHTS" in message and "head.cls_subnet.0.weight is not in the file" in message


def test_eval_only_takes_weights_named_on_the_command_line(finished, tmp_path, digits):
    config, out = finished
    named = tmp_path / "named.pth"
    named.write_bytes((out / "model_final.pth").read_bytes())
    run(config, "--eval-only", "MODEL.WEIGHTS", str(named))
    assert f"evaluating {named}" in read_log(digits)


def test_eval_only_leaves_the_config_of_the_run(finished):
    config, out = finished
    before = (out / "config.yaml").read_text()
    run(config, "--eval-only", "INPUT.MIN_SIZE_TEST", "64")
    assert (out / "config.yaml").read_text() == before


# --- a used folder


def test_overwrite_leaves_nothing_of_the_earlier_run(digits, finished):
    config, out = finished
    (out / "model_0000099.pth").write_bytes(b"of the earlier run")
    (out / "notes.txt").write_text("of a person")
    run(config, "--overwrite", "SOLVER.MAX_ITER", "1")
    assert get_iterations(digits) == [0]
    assert {x.name for x in out.glob("*.pth")} == {"model_final.pth"}
    assert (out / "notes.txt").is_file()


def test_overwrite_and_resume_exclude_each_other(finished, capsys):
    assert "--overwrite starts a new run" in refuse(capsys, finished[0], "--resume", "--overwrite")


def test_newest_checkpoint_is_by_iteration_and_readable(tmp_path):
    for name, iteration in (("model_final", 9), ("model_0000004", 4), ("model_0000019", 19)):
        torch.save(
            {"model": {"x": torch.zeros(1)}, "iteration": iteration}, tmp_path / f"{name}.pth"
        )
    assert find_last_checkpoint(tmp_path).name == "model_0000019.pth"
    (tmp_path / "model_0000019.pth").write_bytes(b"PK cut off")
    assert find_last_checkpoint(tmp_path).name == "model_final.pth"


def test_resume_of_a_broken_checkpoint_names_it(finished, capsys):
    config, out = finished
    (out / "model_final.pth").write_bytes((out / "model_final.pth").read_bytes()[:5000])
    message = refuse(capsys, config, "--resume")
    assert f"the last checkpoint, {out / 'model_final.pth'}, cannot be read" in message


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
        message = refuse(capsys, config, "--resume", "SOLVER.MAX_ITER", "3", key, value)
        before = load_config(config)
        for part in key.split("."):
            before = before[part]
        shown = f"{key}: {before} before, {value} now"
        assert shown in message and message.count(" before, ") == 1
        assert "--allow-changes" in message
    assert yaml.safe_load((out / "config.yaml").read_text())["SOLVER"]["MAX_ITER"] == 2


def test_resume_may_change_what_is_not_learnt(digits, finished):
    words = ["SOLVER.MAX_ITER", "3", "VIS_PERIOD", "5", "INPUT.MIN_SIZE_TEST", "64"]
    run(finished[0], "--resume", *words)
    assert "Starting training from iteration 2" in read_log(digits)


def test_allowed_change_of_the_learning_rate_is_the_one_used(digits, finished):
    words = ["SOLVER.MAX_ITER", "4", "SOLVER.BASE_LR", "0.003", "SOLVER.MOMENTUM", "0.5"]
    run(finished[0], "--resume", "--allow-changes", *words)
    lines = (digits.folder / "out" / "metrics.json").read_text().splitlines()
    rates = {x["iteration"]: x["lr"] for x in map(json.loads, lines) if "lr" in x}
    assert rates[3] == pytest.approx(0.003)
    saved = read_checkpoint(digits.folder / "out" / "model_final.pth")
    groups = str({k: v for k, v in saved.items() if k not in ("model", "config")})
    assert "'momentum': 0.5" in groups and "'momentum': 0.9" not in groups


def test_resume_after_other_anchors_names_tensors_and_keys(finished, capsys):
    words = ["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", "[[1.0]]", "SOLVER.MAX_ITER", "3"]
    message = refuse(capsys, finished[0], "--resume", "--allow-changes", *words)
    assert "head.cls_score.weight is (90, 64, 3, 3) in the file and (30, 64, 3, 3)" in message
    assert "MODEL.ANCHOR_GENERATOR" in message and "model_final.pth" in message


def test_seed_is_kept_without_config_yaml(digits):
    config = digits.write_config(DATASETS__TEST=[], SEED=-1)
    run(config)
    out = digits.folder / "out"
    seed = yaml.safe_load((out / "config.yaml").read_text())["SEED"]
    (out / "config.yaml").unlink()
    run(config, "--resume", "SOLVER.MAX_ITER", "3")
    assert yaml.safe_load((out / "config.yaml").read_text())["SEED"] == seed >= 0
    assert f"this run keeps {seed}" in read_log(digits)


def test_seed_that_nobody_recorded_is_reported_as_new(digits):
    """Of a run of Detectron2's own script, whose config.yaml has SEED -1."""
    config = digits.write_config(DATASETS__TEST=[], SEED=-1)
    run(config)
    file = digits.folder / "out" / "model_final.pth"
    content = read_checkpoint(file)
    content["config"] = content["config"].replace("SEED:", "SEED: -1 #")
    torch.save(content, file)
    run(config, "--resume", "SOLVER.MAX_ITER", "3")
    assert "has not recorded one" in read_log(digits)


# --- the end of a run


def test_a_finished_run_says_that_nothing_is_left(digits, finished):
    run(finished[0], "--resume")
    assert "all 2 iterations of this run are done, and nothing is left to train" in read_log(digits)


def test_checkpoints_hold_class_names_and_config(finished):
    content = read_checkpoint(finished[1] / "model_final.pth")
    assert content["class_names"] == [str(i) for i in range(10)]
    assert yaml.safe_load(content["config"])["SOLVER"]["BASE_LR"] == 0.01


def test_more_gpus_than_there_are_is_refused(digits, capsys):
    num = torch.cuda.device_count() + 2
    message = refuse(capsys, digits.write_config(), "--num-gpus", str(num))
    assert f"--num-gpus {num}, but torch finds {torch.cuda.device_count()}" in message
