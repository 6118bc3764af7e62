"""Focal loss against a float64 reference, fvcore and torchvision, and where those break."""

import math

import pytest
import torch
from fvcore.nn import sigmoid_focal_loss as fvcore_loss
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss as torchvision_loss

from focal_det.losses import FocalLoss, focal_loss_from_labels, sigmoid_focal_loss
from focal_det.losses.targets import DenseTargets

GAMMAS = [0, 0.1, 0.2, 0.5, 1, 1.5, 2, 5]
ALPHAS = [-1, 0, 0.25, 0.75, 1]


def reference(logits, is_positive, alpha, gamma):
    """Eq. 5 of arXiv 1708.02002 per logit in float64, as the text has it: p_t, then alpha_t."""
    x_t = torch.where(is_positive, logits, -logits).double()
    p_t = 1 / (1 + torch.exp(-x_t))
    not_p_t = 1 / (1 + torch.exp(x_t))  # 1 - p_t without cancellation
    alpha_t = torch.where(is_positive, alpha, 1 - alpha) if alpha >= 0 else 1.0
    return alpha_t * not_p_t**gamma * -torch.where(p_t < 0.5, torch.log(p_t), torch.log1p(-not_p_t))


def reference_grad(logits, is_positive, alpha, gamma):
    """The derivative in closed form: alpha_t y (1 - p_t)^gamma (gamma p_t log(p_t) + p_t - 1)."""
    y = torch.where(is_positive, 1.0, -1.0).double()
    x_t = y * logits.double()
    p_t, not_p_t = 1 / (1 + torch.exp(-x_t)), 1 / (1 + torch.exp(x_t))
    log_p_t = torch.where(p_t < 0.5, torch.log(p_t), torch.log1p(-not_p_t))
    alpha_t = torch.where(is_positive, alpha, 1 - alpha) if alpha >= 0 else 1.0
    return alpha_t * y * not_p_t**gamma * (gamma * p_t * log_p_t - not_p_t)


def one_hot(labels, num_classes):
    return F.one_hot(torch.where(labels < 0, num_classes, labels), num_classes + 1)[
        ..., :num_classes
    ].bool()


def loss_and_grad(function, logits):
    logits = logits.clone().requires_grad_()
    loss = function(logits)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), grad


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", ALPHAS)
def test_value_and_gradient_equal_the_formula_in_float64(alpha, gamma):
    logits = torch.linspace(-30, 30, 241)
    for is_positive in (torch.ones(241, dtype=torch.bool), torch.zeros(241, dtype=torch.bool)):
        loss, grad = loss_and_grad(
            lambda x, y=is_positive: sigmoid_focal_loss(x, y.float(), alpha, gamma), logits
        )
        for got, want in (
            (loss, reference(logits, is_positive, alpha, gamma)),
            (grad, reference_grad(logits, is_positive, alpha, gamma)),
        ):
            error = (got.double() - want).abs()
            assert torch.all(
                (error <= 1e-5 * want.abs()) | ((want.abs() <= 1e-30) & (error <= 1e-30))
            )


def test_values_derived_by_hand():
    # p_t = 1/2: (1/2)^2 * log 2, alpha_t 0.25 and 0.75.
    zero = torch.zeros(2)
    loss = sigmoid_focal_loss(zero, torch.tensor([1.0, 0.0]), alpha=0.25, gamma=2)
    assert loss.tolist() == pytest.approx([0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)])
    # p = 0.9 for a positive: 0.1^2 * -log 0.9; the paper's "100 times lower than CE".
    x = torch.tensor([math.log(9.0)])
    assert sigmoid_focal_loss(x, torch.ones(1), gamma=2).item() == pytest.approx(
        0.01 * -math.log(0.9), rel=1e-5
    )


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_value_and_gradient_are_finite_at_saturated_logits(target, gamma):
    logits = torch.tensor([-3e38, -1e4, -104, -88, -17.4, 0, 16.7, 88, 104, 1e4, 3e38])
    loss, grad = loss_and_grad(
        lambda x: sigmoid_focal_loss(x, torch.full_like(x, target), 0.25, gamma), logits
    )
    assert loss.isfinite().all() and grad.isfinite().all()
    labels = torch.full((11,), 0 if target == 1 else 1)
    loss, grad = loss_and_grad(
        lambda x: focal_loss_from_labels(x[:, None], labels, alpha=0.25, gamma=gamma), logits / 10
    )
    assert loss.isfinite() and grad.isfinite().all()


def test_peers_give_nan_where_ours_does_not():
    logits, targets = torch.tensor([-20.0]), torch.zeros(1)
    for peer in (fvcore_loss, torchvision_loss):
        _, grad = loss_and_grad(lambda x, f=peer: f(x, targets, alpha=0.25, gamma=0.5), logits)
        assert grad.isnan().all()
    _, grad = loss_and_grad(lambda x: sigmoid_focal_loss(x, targets, 0.25, 0.5), logits)
    assert grad.isfinite().all()


@pytest.mark.parametrize("peer", [fvcore_loss, torchvision_loss])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("alpha", [-1, 0.25])
def test_equals_the_peers_with_hard_and_soft_targets(peer, reduction, alpha):
    logits = torch.randn(50, 7) * 4
    for targets in (torch.rand(50, 7), (torch.rand(50, 7) < 0.2).float()):
        for gamma in (0, 1, 1.5, 2, 5):
            ours = sigmoid_focal_loss(logits, targets, alpha, gamma, reduction)
            torch.testing.assert_close(
                ours, peer(logits, targets, alpha, gamma, reduction), rtol=1e-5, atol=1e-6
            )


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("alpha", [-1, 0.25])
def test_sum_from_labels_equals_the_formula(alpha, gamma):
    logits, labels = torch.randn(200, 5) * 5, torch.randint(-1, 6, (200,))
    loss, grad = loss_and_grad(
        lambda x: focal_loss_from_labels(x, labels, alpha=alpha, gamma=gamma), logits
    )
    is_positive, valid = one_hot(labels, 5), (labels >= 0)[:, None]
    torch.testing.assert_close(
        loss.double(),
        (valid * reference(logits, is_positive, alpha, gamma)).sum(),
        rtol=1e-5,
        atol=0,
    )
    want = valid * reference_grad(logits, is_positive, alpha, gamma)
    torch.testing.assert_close(grad.double(), want, rtol=1e-5, atol=1e-9)


def test_easy_classes_keep_precision_beside_a_wrong_one():
    # The class itself costs 30 nats, wrongly as background and rightly 1e-39: nothing of the former
    # may leak into the sum.
    logits, labels = torch.tensor([[30.0, -20.0]]), torch.tensor([0])
    want = reference(logits, one_hot(labels, 2), 0.25, 2).sum()
    torch.testing.assert_close(
        focal_loss_from_labels(logits, labels, alpha=0.25, gamma=2).double(),
        want,
        rtol=1e-5,
        atol=0,
    )


@pytest.mark.parametrize("gamma", [0, 0.5, 2])
def test_gradcheck_in_float64(gamma):
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([-1, 0, 1, 2, 3, 3])
    assert torch.autograd.gradcheck(
        lambda x: focal_loss_from_labels(x, labels, alpha=0.25, gamma=gamma),
        logits,
        check_forward_ad=True,
        check_batched_forward_grad=True,
        check_batched_grad=True,
    )
    assert torch.autograd.gradgradcheck(
        lambda x: focal_loss_from_labels(x, labels, alpha=0.25, gamma=gamma), logits
    )
    targets = torch.rand(6, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: sigmoid_focal_loss(x, targets, 0.25, gamma), logits)


def jvp_by_dual_tensors(function, x, tangent):
    """Value and tangent by forward-mode differentiation without torch.func."""
    with forward_ad.dual_level():
        return tuple(forward_ad.unpack_dual(function(forward_ad.make_dual(x, tangent))))


# What is done with a function of (5, 3) logits to a number; `tangents` are (2, 5, 3).
TRANSFORMS = {
    "grad": lambda f, x, tangents: torch.func.grad(f)(x),
    "jvp": lambda f, x, tangents: torch.func.jvp(f, (x,), (tangents[0],)),
    "forward_ad": lambda f, x, tangents: jvp_by_dual_tensors(f, x, tangents[0]),
    "hessian": lambda f, x, tangents: torch.func.hessian(f)(x),
    "vmap": lambda f, x, tangents: torch.func.vmap(f)(tangents),
    "vmap_of_grad": lambda f, x, tangents: torch.func.vmap(torch.func.grad(f))(tangents),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("gamma", [0, 0.5, 2])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_function_transforms_equal_those_of_fvcore(transform, gamma, dtype):
    logits, tangents = torch.randn(5, 3, dtype=dtype) * 3, torch.randn(2, 5, 3, dtype=dtype)
    labels, soft = torch.tensor([-1, 0, 2, 3, 3]), torch.rand(5, 3, dtype=dtype)
    hard, valid = one_hot(labels, 3).to(dtype), (labels >= 0)[:, None]
    pairs = [
        (
            lambda x: focal_loss_from_labels(x, labels, alpha=0.25, gamma=gamma),
            lambda x: (fvcore_loss(x, hard, 0.25, gamma) * valid).sum(),
        )
    ]
    for y in (hard, soft):
        pairs.append(
            (
                lambda x, y=y: sigmoid_focal_loss(x, y, 0.25, gamma, "sum"),
                lambda x, y=y: fvcore_loss(x, y, 0.25, gamma, "sum"),
            )
        )
    for ours, peer in pairs:
        got, want = (transform(f, logits, tangents) for f in (ours, peer))
        # fvcore computes in float32.
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5, check_dtype=False)


def test_a_compiled_jvp_equals_the_eager_one():
    logits, labels = torch.randn(5, 3), torch.tensor([-1, 0, 2, 3, 3])

    def tangent(x, v):
        return torch.func.jvp(
            lambda x: focal_loss_from_labels(x, labels, alpha=0.25, gamma=2), (x,), (v,)
        )[1]

    got = torch.compile(tangent, backend="aot_eager")(logits, logits)
    torch.testing.assert_close(got, tangent(logits, logits))
    torch.compiler.reset()


def test_vmap_over_logits_and_labels_checks_the_labels():
    logits, labels = torch.randn(4, 6, 3), torch.randint(-1, 4, (4, 6))

    def loss(x, y):
        return focal_loss_from_labels(x, y, alpha=0.25, gamma=2)

    want = torch.stack([loss(x, y) for x, y in zip(logits, labels)])
    torch.testing.assert_close(torch.func.vmap(loss)(logits, labels), want)
    with pytest.raises(ValueError, match=r"labels must be in \[-1, 3\], got values from 4 to 4"):
        torch.func.vmap(loss)(logits, torch.full((4, 6), 4))


@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_transforms_are_finite_at_saturated_logits(target):
    logits = torch.tensor([-1e4, -104, -30, 0, 30, 104, 1e4])
    labels = torch.full((7,), 0 if target == 1 else 1)
    for function in (
        lambda x: focal_loss_from_labels(x[:, None], labels, alpha=0.25, gamma=0.5),
        lambda x: sigmoid_focal_loss(x, torch.full_like(x, target), 0.25, 0.5, "sum"),
    ):
        for transform in TRANSFORMS.values():
            results = transform(function, logits, torch.stack([logits, -logits]))
            results = results if isinstance(results, tuple) else (results,)
            assert all(x.isfinite().all() for x in results)


def test_gamma_zero_equals_bce():
    logits, targets = torch.randn(100) * 8, torch.rand(100)
    want = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    torch.testing.assert_close(sigmoid_focal_loss(logits, targets, gamma=0), want)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_dtype_of_the_gradient(dtype):
    logits, labels = (torch.randn(30, 4) * 5).to(dtype), torch.randint(-1, 5, (30,))
    loss, grad = loss_and_grad(
        lambda x: focal_loss_from_labels(x, labels, alpha=0.25, gamma=2), logits
    )
    assert loss.dtype == torch.float32 and grad.dtype == dtype
    torch.testing.assert_close(
        loss, focal_loss_from_labels(logits.float(), labels, alpha=0.25, gamma=2)
    )


@pytest.mark.parametrize("num_classes", [1, 4])
def test_empty_ignored_and_background_anchors(num_classes):
    kwargs = {"alpha": 0.25, "gamma": 2.0}
    empty = torch.zeros(0, num_classes, requires_grad=True)
    focal_loss_from_labels(empty, torch.zeros(0, dtype=torch.int64), **kwargs).backward()
    assert empty.grad.shape == (0, num_classes)
    logits = torch.randn(8, num_classes)
    loss, grad = loss_and_grad(
        lambda x: focal_loss_from_labels(x, torch.full((8,), -1), **kwargs), logits
    )
    assert loss == 0 and torch.all(grad == 0)
    loss = focal_loss_from_labels(logits, torch.full((8,), num_classes), **kwargs)
    torch.testing.assert_close(
        loss, sigmoid_focal_loss(logits, torch.zeros_like(logits), 0.25, 2, "sum")
    )


def test_module_sums_each_image_over_levels():
    logits = [torch.randn(2, 12, 3), torch.randn(2, 3, 12).transpose(1, 2), torch.randn(2, 0, 3)]
    labels = torch.randint(-1, 4, (2, 24))
    before = [x.clone() for x in logits]
    loss = FocalLoss(alpha=0.25, gamma=1.5)(
        logits, DenseTargets.build(labels, torch.zeros(2, 24, 4), 3)
    )
    for i in range(2):
        want = focal_loss_from_labels(torch.cat(logits, dim=1)[i], labels[i], alpha=0.25, gamma=1.5)
        torch.testing.assert_close(loss[i], want)
    assert all(torch.equal(x, y) for x, y in zip(logits, before))


@given(seed=st.integers(0, 2**31), split=st.integers(0, 40), gamma=st.sampled_from(GAMMAS))
@settings(max_examples=30, deadline=None)
def test_order_and_partition_of_anchors_do_not_matter(seed, split, gamma):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(40, 3, generator=generator, dtype=torch.float64) * 10
    labels = torch.randint(-1, 4, (40,), generator=generator)
    order = torch.randperm(40, generator=generator)

    def loss(idxs):
        return focal_loss_from_labels(logits[idxs], labels[idxs], alpha=0.25, gamma=gamma)

    torch.testing.assert_close(loss(order), loss(slice(None)))
    torch.testing.assert_close(loss(order[:split]) + loss(order[split:]), loss(slice(None)))


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"alpha": 1.7}, r"alpha must be in \[0, 1\], or -1 for no weighting, got 1.7"),
        ({"alpha": -0.5}, "alpha must be"),
        ({"alpha": math.nan}, "alpha must be"),
        ({"gamma": -1}, r"gamma must be in \[0, inf\), got -1"),
        ({"gamma": math.inf}, r"gamma must be in \[0, inf\), got inf"),
        ({"reduction": "summ"}, "reduction must be one of none, mean, sum, got 'summ'"),
        ({"targets": torch.zeros(2)}, r"shape of inputs \(3,\), got \(2,\)"),
        ({"targets": torch.full((3,), 2.0)}, r"targets must be in \[0, 1\]"),
        ({"targets": torch.full((3,), math.nan)}, r"targets must be in \[0, 1\]"),
        ({"targets": torch.zeros(3, requires_grad=True)}, "targets must not require a gradient"),
        (
            {"inputs": torch.zeros(3, dtype=torch.int64)},
            "logits must be floating point, got torch.int64",
        ),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        sigmoid_focal_loss(**{"inputs": torch.zeros(3), "targets": torch.zeros(3), **kwargs})


@pytest.mark.parametrize("label", [-2, 4])
def test_a_label_without_an_output_is_named(label):
    with pytest.raises(
        ValueError, match=rf"labels must be in \[-1, 3\], got values from .*{label}"
    ):
        focal_loss_from_labels(torch.zeros(2, 3), torch.tensor([0, label]), alpha=0.25, gamma=2)
