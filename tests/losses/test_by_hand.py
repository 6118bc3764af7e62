"""Values that one can derive with pen and paper, for each loss."""

import math

import pytest
import torch

from focal_det.losses.targets import DenseTargets
from focal_det.registry import CLS_LOSS_REGISTRY

LOG2, LOG3 = math.log(2), math.log(3)
# One anchor with the first of two classes. A logit of log 3 is p = 3/4, one of 0 is p = 1/2.
OBJECT = torch.tensor([[[LOG3, 0.0]]])


def evaluate(name, args, logits=OBJECT, labels=((0,),), num_classes=2, iou=1.0, steps=1):
    """Sums per image, of the last of some equal steps."""
    labels = torch.tensor(labels)
    targets = DenseTargets.build(labels, torch.zeros(*labels.shape, 4), num_classes)
    anchors = torch.tensor([[0.0, 0.0, 10.0, 10.0]]) + 20 * torch.arange(labels.shape[1])[:, None]
    iou = iou * ((labels >= 0) & (labels < num_classes)).float()
    loss = CLS_LOSS_REGISTRY.build(name, args, num_classes=num_classes)
    for _ in range(steps):
        values = loss(
            [logits], DenseTargets(**{**vars(targets), "anchors": anchors[None], "iou": iou})
        )
    return values.tolist()


@pytest.mark.parametrize(
    ("name", "args", "want"),
    [
        # The object's class: p_t = 3/4, so 1/4 * (1/4)^2 * log(4/3); the other: p_t = 1/2, so 3/4 *
        # (1/2)^2 * log 2.
        ("FocalLoss", {"alpha": 0.25, "gamma": 2}, math.log(4 / 3) / 64 + 3 / 16 * LOG2),
        # alpha 0.5 and gamma 1 for the object's class, alpha 0.2 and gamma 3 for the other.
        (
            "FocalLoss",
            {"alpha_per_class": [0.5, 0.2], "gamma_per_class": [1.0, 3.0]},
            0.5 * 0.25 * math.log(4 / 3) + 0.8 * 0.125 * LOG2,
        ),
        # p*_t = sigmoid(2 log 3) = 9/10 and sigmoid(0) = 1/2.
        ("FocalStarLoss", {"alpha": -1, "gamma": 2, "beta": 0}, (math.log(10 / 9) + LOG2) / 2),
        # 0.9 - 3/4 and 0.9 - 1/2.
        ("HingeLoss", {"alpha": -1, "threshold": 0.9}, 0.15 + 0.4),
        ("HingeLoss", {"alpha": -1, "threshold": 0.5}, 0.0),
        # gamma 2: (1/4)^2 log(4/3) + (1/4)^3 and (1/2)^2 log 2 + (1/2)^3.
        (
            "PolyFocalLoss",
            {"alpha": -1, "gamma": 2, "epsilon": 1},
            math.log(4 / 3) / 16 + 1 / 64 + LOG2 / 4 + 1 / 8,
        ),
        (
            "PolyFocalLoss",
            {"alpha": -1, "gamma": 0, "epsilon": -1},
            math.log(4 / 3) - 1 / 4 + LOG2 - 1 / 2,
        ),
        # No power of the positive; the negative has p_m = 1/2 - 1/4, so -(1/4)^2 log(3/4).
        (
            "AsymmetricLoss",
            {"gamma_pos": 0, "gamma_neg": 2, "shift": 0.25},
            math.log(4 / 3) + math.log(4 / 3) / 16,
        ),
        (
            "EqualizedFocalLoss",
            {"alpha": 0.25, "gamma": 2, "scale": 8},
            math.log(4 / 3) / 64 + 3 / 16 * LOG2,
        ),
        # The target is 1: -log p of the object, and (1/2)^2 log 2 with weight 3.
        (
            "MatchabilityAwareLoss",
            {"gamma": 2, "neg_weight": 3},
            math.log(4 / 3) + 3 / 4 * LOG2,
        ),
        ("EqualizedQualityFocalLoss", {"gamma": 2}, math.log(4 / 3) / 16 + LOG2 / 4),
        ("SamplingFreeLoss", {}, math.log(4 / 3) + LOG2),
        # One anchor is mined, and its mean is its cross entropy.
        ("OHEMLoss", {"batch": 1}, math.log(4 / 3) + LOG2),
        # Gradient norms 1/4 and 1/2 are in regions of their own, each with one term: density 1
        # times two regions.
        ("GHMCLoss", {"num_bins": 30}, (math.log(4 / 3) + LOG2) / 2),
        # One region with both terms: density 2 times one region.
        ("GHMCLoss", {"num_bins": 1}, (math.log(4 / 3) + LOG2) / 2),
    ],
)
def test_an_object_of_two_known_probabilities(name, args, want):
    assert evaluate(name, args)[0] == pytest.approx(want, rel=1e-5)


def test_softmax_over_two_classes_and_background():
    # exp of the logits is 3, 1, 4: p_t = 3/8 for the object, 4/8 for background.
    logits = torch.tensor([[[LOG3, 0.0, math.log(4)]]])
    got = evaluate("SoftmaxFocalLoss", {"alpha": 0.25, "gamma": 2}, logits)
    assert got[0] == pytest.approx(0.25 * (5 / 8) ** 2 * math.log(8 / 3), rel=1e-5)
    got = evaluate("SoftmaxFocalLoss", {"alpha": 0.25, "gamma": 1}, logits, labels=((2,),))
    assert got[0] == pytest.approx(0.75 * 0.5 * LOG2, rel=1e-5)


def test_quality_and_varifocal_with_an_iou_of_one_half():
    # Of the object's class, |1/2 - 3/4|^2 times the cross entropy (log(4/3) + log 4) / 2; of the
    # other, (1/2)^2 log 2.
    cross_entropy = (math.log(4 / 3) + math.log(4)) / 2
    assert evaluate("QualityFocalLoss", {"beta": 2}, iou=0.5)[0] == pytest.approx(
        cross_entropy / 16 + LOG2 / 4, rel=1e-5
    )
    got = evaluate("VarifocalLoss", {"neg_weight": 0.75, "gamma": 2}, iou=0.5)
    assert got[0] == pytest.approx(cross_entropy / 2 + 0.75 * LOG2 / 4, rel=1e-5)
    # A prediction that misses is a negative: p = 3/4 costs 0.75 * (3/4)^2 log 4.
    got = evaluate("VarifocalLoss", {"neg_weight": 0.75, "gamma": 2}, iou=0.0)
    assert got[0] == pytest.approx(0.75 * (9 / 16 * math.log(4) + LOG2 / 4), rel=1e-5)


def test_matchability_aware_with_an_iou_of_one_half():
    # The target is (1/2)^2, so 1/4 log(4/3) + 3/4 log 4; the other class has (1/2)^2 log 2.
    got = evaluate("MatchabilityAwareLoss", {"gamma": 2}, iou=0.5)
    want = math.log(4 / 3) / 4 + 3 / 4 * math.log(4) + LOG2 / 4
    assert got[0] == pytest.approx(want, rel=1e-5)
    # A positive that misses its box is a negative with full weight: log 4.
    got = evaluate("MatchabilityAwareLoss", {"gamma": 2}, iou=0.0)
    assert got[0] == pytest.approx(math.log(4) + LOG2 / 4, rel=1e-5)


def test_equalized_focal_grows_gamma_of_a_rare_class():
    # gamma = 1, no alpha. Class 0 has a positive with p_t = 3/4 only, class 1 a negative with
    # p = 1/2 only: g is 1 (no negative gradient yet) and 0. So from the second step on class 1 has
    # gamma 1 + 2 and weight 3: 3 (1/2)^3 log 2.
    args = {"alpha": -1, "gamma": 1, "scale": 2}
    assert evaluate("EqualizedFocalLoss", args, steps=1)[0] == pytest.approx(
        math.log(4 / 3) / 4 + LOG2 / 2, rel=1e-5
    )
    assert evaluate("EqualizedFocalLoss", args, steps=2)[0] == pytest.approx(
        math.log(4 / 3) / 4 + 3 / 8 * LOG2, rel=1e-5
    )


def test_equalized_quality_counts_a_gradient_of_either_sign():
    # One class, gamma = 1. A positive with p = 3/4 is above its target of 1/2, so its derivative,
    # p (1 - p) CE + d^2 with d = 1/4, is positive. A negative with p = 1/2: p (1 - p) log 2 + p^2.
    cross_entropy = (math.log(4 / 3) + math.log(4)) / 2
    ratio = (3 / 16 * cross_entropy + 1 / 16) / (LOG2 / 4 + 1 / 4)
    gamma = 1 + 2 * (1 - ratio)
    batch = {
        "logits": torch.tensor([[[LOG3], [0.0]]]),
        "labels": ((0, 1),),
        "num_classes": 1,
        "iou": 0.5,
    }
    args = {"gamma": 1, "scale": 2}
    for steps, power in ((1, 1), (2, gamma)):
        got = evaluate("EqualizedQualityFocalLoss", args, **batch, steps=steps)[0]
        want = power * ((1 / 4) ** power * cross_entropy + (1 / 2) ** power * LOG2)
        assert got == pytest.approx(want, rel=1e-5)


def test_ghm_counts_per_image_and_averages_over_steps():
    # Two images, the second of two anchors that are ignored and background: terms with g = 1/4, 1/2
    # | 3/4, 1/2. Per image the regions of 1/4 and 3/4 hold half a term, that of 1/2 holds one; the
    # density is that times the three regions.
    logits, labels = OBJECT.expand(2, 2, 2), ((0, -1), (-1, 2))
    want = [math.log(4 / 3) / 1.5 + LOG2 / 3, math.log(4) / 1.5 + LOG2 / 3]
    assert evaluate("GHMCLoss", {"num_bins": 4}, logits, labels) == pytest.approx(want, rel=1e-5)
    assert evaluate("GHMCLoss", {"num_bins": 4}, logits, labels, steps=3) == pytest.approx(
        want, rel=1e-5
    )


def test_ghm_has_a_density_and_a_mean_for_each_level():
    # One anchor a level: terms with g = 1/4 and 1/2 on the first, and twice 1/2 on the second,
    # which is one region of two terms.
    logits = [OBJECT, torch.zeros(1, 1, 2)]
    labels = torch.tensor([[0, 2]])
    targets = DenseTargets.build(labels, torch.zeros(1, 2, 4), 2)
    loss = CLS_LOSS_REGISTRY.build("GHMCLoss", {"momentum": 0.5}, num_classes=2)
    want = [(math.log(4 / 3) + LOG2) / 2 + LOG2]
    assert loss(logits, targets).tolist() == pytest.approx(want, rel=1e-5)
    # The levels change places: on the first, the average of the region of 1/2 is (1 + 2) / 2; on
    # the second, that of 1/4 is (0 + 1) / 2 and that of 1/2 is (2 + 1) / 2.
    targets = DenseTargets.build(labels.flip(1), torch.zeros(1, 2, 4), 2)
    want = [2 * LOG2 / 1.5 + (math.log(4 / 3) / 0.5 + LOG2 / 1.5) / 2]
    assert loss(logits[::-1], targets).tolist() == pytest.approx(want, rel=1e-5)


def test_ghm_starts_anew_from_a_checkpoint_with_one_density():
    loss = CLS_LOSS_REGISTRY.build("GHMCLoss", {"num_bins": 4}, num_classes=2)
    loss.load_state_dict({"counts": torch.ones(4)})
    assert loss.counts.sum() == 0


def test_more_levels_than_ghm_keeps_are_refused():
    loss = CLS_LOSS_REGISTRY.build("GHMCLoss", {}, num_classes=2)
    targets = DenseTargets.build(torch.zeros(1, 9).long(), torch.zeros(1, 9, 4), 2)
    with pytest.raises(ValueError, match="GHMCLoss takes at most 8 pyramid levels, got 9"):
        loss([OBJECT] * 9, targets)


def test_ohem_drops_what_a_harder_anchor_overlaps():
    # Cross entropies log 2 each for background anchors with p = 1/2 in one class and nearly 0 in
    # the other.
    logits = torch.tensor([[[0.0, -50.0], [LOG3, -50.0], [-LOG3, -50.0]]])
    got = evaluate("OHEMLoss", {"batch": 2}, logits, ((2, 2, 2),))
    assert got[0] == pytest.approx((math.log(4) + LOG2) / 2, rel=1e-5)
