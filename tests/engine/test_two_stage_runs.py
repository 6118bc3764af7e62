"""Runs of `focal-det train` with two-stage detectors: exact resumes, and metrics of both stages."""

import json
import signal

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from focal_det.engine.trainer import Trainer
from tests.engine.runs import (
    KEYS,
    TWO,
    find_differences,
    read_weights,
    run_to_end,
    start_train,
    wait_for_checkpoint,
)
from tests.faults.copies import CASCADE, FASTER, DigitsCopy, refuse_train, run_train
from tests.faults.test_training_faults import make_trainer

slow = pytest.mark.slow
# Random samples in both stages.
SAMPLED = {
    **KEYS,
    **FASTER,
    "SOLVER__MAX_ITER": 12,
    "SOLVER__CHECKPOINT_PERIOD": 3,
    "MODEL__FOCAL_DET__TELEMETRY_PERIOD": 4,
}
# A state in the loss and in the divisors, for each of the three stages of a cascade.
STATEFUL = {
    **SAMPLED,
    **CASCADE,
    "MODEL__FOCAL_DET__RPN__NORMALIZER__NAME": "EMAPosCount",
    "MODEL__FOCAL_DET__RPN__SAMPLING": "hard",
    "MODEL__FOCAL_DET__ROI_BOX_HEAD__CLS_LOSS__NAME": "EqualizedFocalLoss",
    "MODEL__FOCAL_DET__ROI_BOX_HEAD__NORMALIZER__NAME": "EMAPosCount",
    "MODEL__FOCAL_DET__ROI_BOX_HEAD__PRIOR_PROB": 0.01,
    "MODEL__FOCAL_DET__ROI_BOX_HEAD__SAMPLING": "none",
    "SOLVER__BASE_LR": 0.01,
}
FIGURES = ("max_abs_logit", "mean_p_t", "normalizer", "prior_distance", "share_of_positives")


@slow
@pytest.mark.parametrize("words", [[], TWO], ids=["one", "two"])
@pytest.mark.parametrize("keys", [SAMPLED, STATEFUL], ids=["sampled", "stateful"])
def test_interrupted_run_ends_with_the_same_weights(keys, words, digits, tmp_path_factory):
    whole = DigitsCopy(tmp_path_factory.mktemp("whole"))
    run_to_end(whole.write_config(**keys), *words)
    config = digits.write_config(**keys)
    out = digits.folder / "out"
    process = start_train(config, *words)
    wait_for_checkpoint(out, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert (out / "last_checkpoint").read_text() != "model_final.pth"
    run_to_end(config, "--resume", *words)
    assert find_differences(read_weights(out), read_weights(whole.folder / "out")) == []
    last_line = (out / "metrics.json").read_text().splitlines()[-1]
    scope = "stage2/" if keys is STATEFUL else ""
    for name in ("focal_det/rpn/max_abs_logit", f"{scope}focal_det/roi_head/max_abs_logit"):
        assert json.loads(last_line)[name] > 0


def test_run_from_its_own_checkpoint_ends_with_the_same_weights(digits):
    """RPN and ROI heads draw the samples that the uninterrupted run drew."""
    keys = {**SAMPLED, "SOLVER__MAX_ITER": 4, "SOLVER__CHECKPOINT_PERIOD": 2}
    make_trainer(Trainer, digits, **keys).train()
    out = digits.folder / "out"
    expected = read_weights(out)
    (out / "model_final.pth").unlink()
    (out / "last_checkpoint").write_text("model_0000001.pth")
    trainer = make_trainer(Trainer, digits, **keys)
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 2
    trainer.train()
    assert find_differences(read_weights(out), expected) == []


def test_resume_compares_the_settings_of_the_stages(digits, capsys):
    config = digits.write_config(**FASTER, DATASETS__TEST=[])
    run_train(config)
    stage = "MODEL.FOCAL_DET.ROI_BOX_HEAD"
    free = ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.5", "MODEL.RPN.POST_NMS_TOPK_TEST", "9"]
    free += [f"{stage}.CLS_LOSS.ARGS.PolyFocalLoss.epsilon", "0.5", "SOLVER.MAX_ITER", "3"]
    changed = [f"{stage}.CLS_LOSS.ARGS.SoftmaxFocalLoss.gamma", "1.0"]
    message = refuse_train(capsys, config, "--resume", *free, *changed)
    assert f"{changed[0]}: 0.0 before, 1.0 now\nSet" in message
    run_train(config, "--resume", *free)
    assert "Starting training from iteration 2" in (digits.folder / "out/log.txt").read_text()


@pytest.mark.parametrize(
    ("keys", "stages"),
    [
        (FASTER, ["rpn", "roi_head"]),
        (CASCADE, ["rpn", *(f"stage{i}/roi_head" for i in range(3))]),
    ],
    ids=["faster", "cascade"],
)
def test_metrics_have_the_figures_of_all_stages(keys, stages, digits):
    keys = {**keys, "MODEL__FOCAL_DET__TELEMETRY_PERIOD": 2, "DATASETS__TEST": []}
    make_trainer(Trainer, digits, **keys).train()
    out = digits.folder / "out"
    (line,) = map(json.loads, (out / "metrics.json").read_text().splitlines())
    (file,) = out.glob("events.out.tfevents.*")
    events = EventAccumulator(str(file))
    events.Reload()
    for stage in stages:
        scope, _, part = stage.rpartition("/")
        for figure in FIGURES:
            name = "/".join(filter(None, (scope, "focal_det", part, figure)))
            assert line[name] == pytest.approx(events.Scalars(name)[-1].value), name
    losses = {x for x in line if x.startswith("loss_")}
    assert len(losses) == 2 * len(stages)
    assert line["total_loss"] == pytest.approx(sum(line[x] for x in losses))
