"""A second loss that differs in all that the interface allows: the detector asks the loss."""

import math

import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model

from focal_det.config import add_focal_det_config
from focal_det.losses import ClsLoss, FocalLoss
from focal_det.model_zoo import get_config_file
from focal_det.modeling.retinanet import FocalRetinaNet
from focal_det.registry import CLS_LOSS_REGISTRY


class SoftmaxToyLoss(ClsLoss):
    """Softmax cross entropy over K classes and background, weighted by IoU, as a mean per image."""

    needs = frozenset({"iou", "anchors"})
    self_normalized = True

    def __init__(self, *, scale: float = 1.0, alpha: float = 0.25):
        super().__init__()
        self.scale, self.alpha, self.seen = scale, alpha, []

    def num_outputs(self, num_classes):
        return num_classes + 1

    def bias(self, prior, num_classes):
        return torch.tensor([0.0] * num_classes + [math.log(num_classes * (1 - prior) / prior)])

    def scores(self, logits):
        return logits.softmax(dim=-1)[..., :-1]

    def forward(self, logits, targets):
        self.seen.append(targets)
        log_probs = torch.cat(list(logits), dim=1).log_softmax(dim=-1)
        valid = targets.gt_labels >= 0
        loss = -log_probs.gather(-1, targets.gt_labels.clamp(min=0)[..., None])[..., 0] * (
            1 + targets.iou
        )
        self.means = self.scale * (loss * valid).sum(dim=1) / valid.sum(dim=1)
        return self.means


@pytest.fixture
def toy_cfg(make_cfg):
    """The small config with the toy loss, registered for the test only."""
    CLS_LOSS_REGISTRY._obj_map["SoftmaxToyLoss"] = SoftmaxToyLoss
    cfg = get_cfg()
    add_focal_det_config(cfg)
    yield lambda *overrides: _merge(make_cfg(), cfg, overrides)
    del CLS_LOSS_REGISTRY._obj_map["SoftmaxToyLoss"]


def _merge(cfg, with_toy, overrides):
    cfg.MODEL.FOCAL_DET = with_toy.MODEL.FOCAL_DET.clone()
    cfg.merge_from_list(["MODEL.FOCAL_DET.CLS_LOSS.NAME", "SoftmaxToyLoss", *overrides])
    return cfg


def test_its_arguments_come_from_detectron2s_keys(toy_cfg):
    model = build_model(
        toy_cfg(
            "MODEL.FOCAL_DET.CLS_LOSS.ARGS.SoftmaxToyLoss.scale",
            3.0,
            "MODEL.RETINANET.FOCAL_LOSS_ALPHA",
            0.7,
        )
    )
    assert (model.cls_loss.scale, model.cls_loss.alpha) == (3.0, 0.7)


def test_the_head_has_its_outputs_and_starts_at_its_prior(toy_cfg):
    model = build_model(toy_cfg("MODEL.RETINANET.PRIOR_PROB", 0.02))
    assert model.head.cls_score.out_channels == 9 * 6
    bias = model.head.cls_score.bias.reshape(9, 6)
    torch.testing.assert_close(model.cls_loss.scores(bias).sum(dim=1), torch.full((9,), 0.02))


def test_it_gets_the_targets_that_it_needs(toy_cfg, batch):
    model = build_model(toy_cfg()).train()
    losses = model(batch)
    sum(losses.values()).backward()
    (targets,) = model.cls_loss.seen
    num_images, num_anchors = targets.gt_labels.shape
    assert targets.anchors.shape == (3, num_anchors, 4) and targets.iou.shape == (
        num_images,
        num_anchors,
    )
    pos_mask = (targets.gt_labels >= 0) & (targets.gt_labels < 5)
    assert not targets.iou.requires_grad and (targets.iou[~pos_mask] == 0).all()
    assert ((targets.iou[pos_mask] > 0) & (targets.iou[pos_mask] <= 1)).all()
    assert model.cls_loss.means.shape == (3,) and losses["loss_cls"] == model.cls_loss.means.mean()
    assert targets.num_pos.tolist() == pos_mask.sum(dim=1).tolist() and targets.num_pos[2] == 0


@pytest.mark.parametrize("num_classes", [1, 3, 9])
def test_its_scores_are_those_of_the_classes(toy_cfg, num_classes):
    model = build_model(
        toy_cfg(
            "MODEL.RETINANET.NUM_CLASSES", num_classes, "MODEL.RETINANET.SCORE_THRESH_TEST", 0.0
        )
    ).eval()
    with torch.no_grad():
        model.head.cls_score.weight.zero_()
        # Class K-1 of each anchor scores highest: a reshape with the wrong number of outputs would
        # mix classes and anchors.
        model.head.cls_score.bias.copy_(
            torch.tensor([0.0] * (num_classes - 1) + [3.0, 1.0]).repeat(9)
        )
        (output,) = model([{"image": torch.zeros(3, 64, 64)}])
    want = math.exp(3) / (num_classes - 1 + math.exp(3) + math.e)
    assert output["instances"].scores[0].item() == pytest.approx(want, rel=1e-5)
    assert output["instances"].pred_classes[0] == num_classes - 1


def test_detections_leave_the_logits_alone(make_cfg):
    model = build_model(make_cfg("MODEL.RETINANET.SCORE_THRESH_TEST", 0.0)).eval()
    anchors = model.anchor_generator([torch.zeros(1, 1, s, s) for s in (8, 4, 2, 1, 1)])
    logits = [torch.randn(1, len(a), 5) for a in anchors]
    before = [x.clone() for x in logits]
    model.inference(anchors, logits, [torch.zeros(1, len(a), 4) for a in anchors], [(64, 64)])
    assert all(torch.equal(x, y) for x, y in zip(logits, before))


def test_stocks_arguments_for_the_loss_are_refused():
    with pytest.raises(ValueError, match="focal_loss_gamma belongs to the loss"):
        FocalRetinaNet(cls_loss=FocalLoss(), normalizer=torch.nn.Identity(), focal_loss_gamma=2.0)


def test_yaml_and_lazy_config_build_the_same_model():
    from detectron2.config import LazyConfig, instantiate

    cfg = get_cfg()
    cfg.merge_from_file(get_config_file("COCO-Detection/focal_retinanet_R_50_FPN_1x.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    lazy = instantiate(
        LazyConfig.load(get_config_file("COCO-Detection/focal_retinanet_R_50_FPN_1x.py")).model
    )
    from_yaml = build_model(cfg)
    assert {k: v.shape for k, v in lazy.state_dict().items()} == {
        k: v.shape for k, v in from_yaml.state_dict().items()
    }
    assert repr(lazy.cls_loss) == repr(from_yaml.cls_loss)
    assert torch.equal(lazy.head.cls_score.bias, from_yaml.head.cls_score.bias)
