"""The limits that tie the losses together: what one becomes at certain parameters is another."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from focal_det.losses import FocalLoss
from focal_det.losses.targets import DenseTargets
from focal_det.registry import CLS_LOSS_REGISTRY
from tests.losses.test_contract import make_targets, one_level, value_and_grad

K = 3
seeds = st.integers(0, 2**31)
gammas = st.one_of(st.sampled_from([0.0, 0.5, 2.0]), st.floats(0.01, 6))
alphas = st.one_of(st.just(-1.0), st.floats(0.01, 0.99))
few = settings(max_examples=15, deadline=None)


def make_batch(seed, num_outputs=K):
    """Logits (2, 30, C) in float64, and targets whose predictions all fit their boxes."""
    torch.manual_seed(seed)
    targets = make_targets(torch.randint(-1, K + 1, (2, 30)))
    logits = torch.randn(2, 30, num_outputs, dtype=torch.float64) * 4
    return logits, DenseTargets(**{**vars(targets), "iou": torch.ones(2, 30)})


def assert_same(loss, other, seed):
    """Equal values and gradients."""
    logits, targets = make_batch(seed)
    got, got_grad = value_and_grad(loss, logits, targets, one_level)
    want, want_grad = value_and_grad(other, logits, targets, one_level)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(got_grad, want_grad)


def build(name, **args):
    return CLS_LOSS_REGISTRY.build(name, args, num_classes=K)


def cross_entropy(logits, targets):
    """Binary cross entropy of torch, summed per image without the ignored anchors."""
    (logits,) = logits
    labels = torch.where(targets.gt_labels < 0, K, targets.gt_labels)
    loss = F.binary_cross_entropy_with_logits(
        logits, F.one_hot(labels, K + 1)[..., :K].to(logits), reduction="none"
    )
    return (loss * (targets.gt_labels >= 0)[..., None]).sum(dim=(1, 2))


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("FocalLoss", {"gamma": 0, "alpha": -1}),
        ("FocalStarLoss", {"gamma": 1, "beta": 0, "alpha": -1}),
        ("PolyFocalLoss", {"gamma": 0, "epsilon": 0, "alpha": -1}),
        ("QualityFocalLoss", {"beta": 0}),
        ("VarifocalLoss", {"gamma": 0, "neg_weight": 1}),
        ("AsymmetricLoss", {"gamma_pos": 0, "gamma_neg": 0, "shift": 0}),
        ("MatchabilityAwareLoss", {"gamma": 0, "neg_weight": 1}),
        ("SamplingFreeLoss", {}),
    ],
)
def test_without_focus_each_is_cross_entropy(name, args):
    assert_same(build(name, **args), cross_entropy, seed=0)


@few
@given(seeds, gammas, alphas)
def test_poly_with_epsilon_zero_is_the_focal_loss(seed, gamma, alpha):
    assert_same(
        build("PolyFocalLoss", gamma=gamma, alpha=alpha, epsilon=0),
        FocalLoss(gamma=gamma, alpha=alpha),
        seed,
    )


@few
@given(seeds, gammas)
def test_quality_focal_with_hard_targets_is_focal(seed, gamma):
    assert_same(build("QualityFocalLoss", beta=gamma), FocalLoss(gamma=gamma, alpha=-1), seed)


@few
@given(seeds, gammas)
def test_asymmetric_with_equal_gammas_is_focal(seed, gamma):
    loss = build("AsymmetricLoss", gamma_pos=gamma, gamma_neg=gamma, shift=0)
    assert_same(loss, FocalLoss(gamma=gamma, alpha=-1), seed)


@few
@given(seeds, gammas.filter(lambda x: x > 0), alphas)
def test_equalized_focal_without_history_is_focal(seed, gamma, alpha):
    focal = FocalLoss(gamma=gamma, alpha=alpha)
    assert_same(build("EqualizedFocalLoss", gamma=gamma, alpha=alpha), focal, seed)
    trained = build("EqualizedFocalLoss", gamma=gamma, alpha=alpha, scale=0)
    for step in range(2):
        assert_same(trained, focal, seed + step)


@few
@given(seeds, gammas)
def test_matchability_aware_with_good_boxes_is_asymmetric(seed, gamma):
    """With every IoU 1, positives have cross entropy and negatives a focal loss."""
    for detach_weight in (False, True):
        loss = build("MatchabilityAwareLoss", gamma=gamma, detach_weight=detach_weight)
        args = {"gamma_pos": 0, "gamma_neg": gamma, "shift": 0, "detach_weight": detach_weight}
        assert_same(loss, build("AsymmetricLoss", **args), seed)


@few
@given(seeds, gammas.filter(lambda x: x > 0))
def test_equalized_quality_with_hard_targets_is_equalized(seed, gamma):
    """Over several steps, so with the same state."""
    loss = build("EqualizedQualityFocalLoss", gamma=gamma)
    other = build("EqualizedFocalLoss", gamma=gamma, alpha=-1, scale=4.0)
    for step in range(3):
        assert_same(loss, other, seed + step)
    torch.testing.assert_close(loss.state_dict(), other.state_dict())


@few
@given(seeds, gammas.filter(lambda x: x > 0))
def test_equalized_quality_without_history_is_quality(seed, gamma):
    quality = build("QualityFocalLoss", beta=gamma)
    assert_same(build("EqualizedQualityFocalLoss", gamma=gamma), quality, seed)
    trained = build("EqualizedQualityFocalLoss", gamma=gamma, scale=0)
    for step in range(2):
        assert_same(trained, quality, seed + step)


@few
@given(seeds, gammas, st.floats(0, 1))
def test_equal_lists_per_class_are_the_scalar(seed, gamma, alpha):
    lists = FocalLoss(alpha=0.9, gamma=7, alpha_per_class=[alpha] * K, gamma_per_class=[gamma] * K)
    assert_same(
        lists.double(),
        FocalLoss(alpha=torch.tensor(alpha).item(), gamma=torch.tensor(gamma).item()),
        seed,
    )


@few
@given(seeds, gammas)
def test_alpha_of_one_half_is_half_the_loss_without_alpha(seed, gamma):
    half, full = FocalLoss(gamma=gamma, alpha=0.5), FocalLoss(gamma=gamma, alpha=-1)
    assert_same(lambda *x: 2 * half(*x), full, seed)


@few
@given(seeds)
def test_mining_all_anchors_is_the_mean_cross_entropy(seed):
    _, targets = make_batch(seed)
    num_valid = (targets.gt_labels >= 0).sum(dim=1)
    assert_same(
        build("OHEMLoss", batch=30, nms_thresh=1.0), lambda *x: cross_entropy(*x) / num_valid, seed
    )


@few
@given(seeds)
def test_one_gradient_bin_is_the_mean_cross_entropy(seed):
    _, targets = make_batch(seed)
    terms_per_image = (targets.gt_labels >= 0).sum() * K / 2
    assert_same(
        build("GHMCLoss", num_bins=1, momentum=0),
        lambda *x: cross_entropy(*x) / terms_per_image,
        seed,
    )


@few
@given(seeds, gammas)
def test_softmax_of_one_class_is_focal_of_the_difference(seed, gamma):
    # With one class, softmax over (x, b) is the sigmoid of x - b; binary focal loss then has one
    # term for each anchor.
    torch.manual_seed(seed)
    logits, labels = torch.randn(2, 30, 2, dtype=torch.float64) * 4, torch.randint(-1, 2, (2, 30))
    targets = make_targets(labels, 1)
    got, _ = value_and_grad(
        build("SoftmaxFocalLoss", gamma=gamma, alpha=-1), logits, targets, one_level
    )
    want, _ = value_and_grad(
        FocalLoss(gamma=gamma, alpha=-1), logits[..., :1] - logits[..., 1:], targets, one_level
    )
    torch.testing.assert_close(got, want)


@few
@given(seeds, gammas, st.floats(-30, 30))
def test_softmax_does_not_see_a_constant_in_all_logits(seed, gamma, constant):
    logits, targets = make_batch(seed, K + 1)
    loss = build("SoftmaxFocalLoss", gamma=gamma)
    values, grad = value_and_grad(loss, logits, targets, one_level)
    shifted, shifted_grad = value_and_grad(loss, logits + constant, targets, one_level)
    torch.testing.assert_close(values, shifted)
    torch.testing.assert_close(grad, shifted_grad)
