"""Telemetry: each figure by its definition, when the writers write, and pictures."""

import copy
import json

import pytest
import torch
from detectron2.data import MetadataCatalog
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage, JSONWriter

from focal_det.registry import CLS_LOSS_REGISTRY
from focal_det.tools.train import main as train
from tests.faults.copies import DigitsCopy


def run(model, batch, iteration):
    """The telemetry of one training step."""
    model.train()
    with EventStorage(iteration) as storage:
        model(copy.deepcopy(batch))
        return {
            k[len("focal_det/") :]: v[0]
            for k, v in storage.latest().items()
            if k.startswith("focal_det/")
        }


@torch.no_grad()
def read(model, batch):
    """Scores (N, R, K), labels and losses of the anchors, all at once and in float64."""
    _, anchors, logits, _ = model.predict(batch)
    labels = torch.stack(model.label_anchors(anchors, [x["instances"] for x in batch])[0])
    logits = torch.cat(logits, dim=1).double()
    targets = torch.nn.functional.one_hot(labels.clamp(min=0), 6)[..., :5].double()
    p_t = torch.where(targets > 0, logits.sigmoid(), 1 - logits.sigmoid())
    losses = (torch.where(targets > 0, 0.25, 0.75) * (1 - p_t) ** 2 * -p_t.log()).sum(dim=2)
    return logits, labels, losses, [len(x) for x in anchors]


def test_each_figure_is_what_it_says(make_cfg, batch):
    torch.manual_seed(3)
    model = build_model(make_cfg()).train()
    torch.nn.init.normal_(model.head.cls_score.weight, std=0.05)
    logits, labels, losses, sizes = read(model, batch)
    found = run(model, batch, 19)
    is_pos, is_neg = (labels >= 0) & (labels < 5), labels == 5
    total = losses[is_pos | is_neg].sum()
    num_hardest = -(-int(is_neg.sum()) // 100)
    assert found["share_of_positives"] == pytest.approx(
        float(losses[is_pos].sum() / total), rel=1e-4
    )
    assert found["share_of_hardest_negatives"] == pytest.approx(
        float(losses[is_neg].topk(num_hardest).values.sum() / total), rel=1e-4
    )
    assert found["max_abs_logit"] == pytest.approx(float(logits.abs().max()), rel=1e-5)
    own = logits[is_pos].sigmoid().gather(1, labels[is_pos][:, None])
    assert found["mean_p_t"] == pytest.approx(float(own.mean()), rel=1e-4)
    mean = logits[labels >= 0].sigmoid().mean()
    assert found["prior_distance"] == pytest.approx(
        float(mean.logit() - torch.tensor(0.01, dtype=torch.float64).logit()), rel=1e-3
    )
    counts = [int((labels == i).sum()) for i in range(5)]
    assert [found[f"num_pos/{i}"] for i in range(5)] == counts and sum(counts) > 0
    per_level = [int(x.sum()) for x in is_pos.split(sizes, dim=1)]
    assert [found[f"num_pos/p{i}"] for i in range(3, 8)] == per_level
    assert found["normalizer"] == pytest.approx(0.9 * 100 + 0.1 * sum(counts))


def test_the_model_starts_at_the_prior(make_cfg, batch):
    found = run(build_model(make_cfg("MODEL.RETINANET.PRIOR_PROB", 0.03)), batch, 19)
    assert abs(found["prior_distance"]) < 0.1 and found["mean_p_t"] == pytest.approx(0.03, rel=0.2)


@pytest.mark.parametrize(
    ("iteration", "period", "expected"),
    [(19, 20, True), (18, 20, False), (4, 5, True), (19, 0, False)],
)
def test_figures_come_when_the_writers_write(iteration, period, expected, make_cfg, batch):
    model = build_model(make_cfg("MODEL.FOCAL_DET.TELEMETRY_PERIOD", period))
    assert ("max_abs_logit" in run(model, batch, iteration)) == expected


@pytest.mark.parametrize("name", [name for name, _ in CLS_LOSS_REGISTRY])
def test_every_loss_has_them_and_its_state_is_left_alone(name, make_cfg, batch):
    model = build_model(make_cfg("MODEL.FOCAL_DET.CLS_LOSS.NAME", name))
    without = copy.deepcopy(model)
    without.telemetry_period = 0
    found = run(model, batch, 19)
    run(without, batch, 19)
    assert {"max_abs_logit", "mean_p_t", "num_pos/p3", "normalizer"} <= set(found)
    assert ("share_of_positives" in found) == hasattr(model.cls_loss, "per_anchor")
    assert all(torch.equal(v, without.state_dict()[k]) for k, v in model.state_dict().items())


def test_a_batch_without_objects_has_no_p_t(make_cfg, batch):
    found = run(build_model(make_cfg()), batch[2:], 19)
    assert "mean_p_t" not in found and found["share_of_positives"] == 0 and found["num_pos/p3"] == 0


def test_many_classes_are_not_told_one_by_one(make_cfg, batch):
    found = run(build_model(make_cfg("MODEL.RETINANET.NUM_CLASSES", 101)), batch, 19)
    assert [x for x in found if x.startswith("num_pos/")] == [f"num_pos/p{i}" for i in range(3, 8)]


def test_classes_have_their_names_in_the_metrics(make_cfg, batch, tmp_path, clean_catalog):
    from detectron2.data import DatasetCatalog

    DatasetCatalog.register("named", lambda: [])
    MetadataCatalog.get("named").thing_classes = ["ant", "bee", "cow", "dog", "elk"]
    model = build_model(make_cfg("DATASETS.TRAIN", ("named",))).train()
    with EventStorage(19):
        model(batch)
        writer = JSONWriter(str(tmp_path / "metrics.json"))
        writer.write()
        writer.close()
    line = json.loads((tmp_path / "metrics.json").read_text())
    assert line["focal_det/num_pos/ant"] > 0 and "focal_det/num_pos/0" not in line


def test_pictures_of_detections_come_at_vis_period(tmp_path, clean_catalog):
    """Detectron2 main takes VIS_PERIOD for a RetinaNet and does nothing with it."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    digits = DigitsCopy(tmp_path)
    config = digits.write_config(VIS_PERIOD=2, SOLVER__MAX_ITER=3, DATASETS__TEST=[])
    train(["--no-check", "--config-file", str(config)])
    events = EventAccumulator(str(tmp_path / "out"), size_guidance={"images": 0})
    events.Reload()
    (tag,) = events.Tags()["images"]
    assert "GT" in tag and [x.step for x in events.Images(tag)] == [0, 2]
