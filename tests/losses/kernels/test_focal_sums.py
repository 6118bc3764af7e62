"""The operator of the fast paths under autograd, torch.compile and mixed precision."""

import pytest
import torch
from detectron2.modeling.meta_arch.retinanet import permute_to_N_HWA_K

from focal_det.experiments.timing import measure_peak_bytes
from focal_det.losses import (
    FocalLoss,
    FocalStarLoss,
    focal_loss_from_labels,
    focal_loss_per_anchor,
    kernels,
)
from focal_det.losses.targets import DenseTargets

WEIGHTS = {"pos_weight": 0.25, "neg_weight": 0.75, "gamma": 2.0}


@pytest.fixture
def scene():
    """Logits (2, 50, 4) that require a gradient, and labels with positives and ignored anchors."""
    return (torch.randn(2, 50, 4) * 3).requires_grad_(), torch.randint(-1, 5, (2, 50))


def plain(logits, labels):
    return focal_loss_per_anchor(logits, labels, **WEIGHTS).sum(dim=1)


def test_it_is_one_operator_that_torch_finds_sound(scene):
    for star in (False, True):
        torch.library.opcheck(kernels._focal_sums, (*scene, 0.25, 0.75, 2.0, 0.5, star, True))


def test_a_compiled_graph_has_the_operator_alone(scene):
    logits, labels = scene
    seen = []

    def backend(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    targets = DenseTargets.build(labels, torch.zeros(2, 50, 4), 4)
    torch.compile(FocalLoss(), backend=backend, fullgraph=True)([logits], targets)
    assert any("focal_sums" in x for x in seen) and not any(
        "logsigmoid" in x or "exp" in x for x in seen
    )
    torch.compiler.reset()


def test_a_second_backward_gives_the_same_gradients(scene):
    logits, labels = scene
    (want,) = torch.autograd.grad(plain(logits, labels).sum(), logits)
    loss = kernels.focal_sums(logits, labels, **WEIGHTS).sum()
    for times in (1, 2, 3):
        loss.backward(retain_graph=True)
        torch.testing.assert_close(logits.grad, times * want)
    kernels.focal_sums(logits, labels, **WEIGHTS).sum().backward()
    torch.testing.assert_close(logits.grad, 4 * want)


def test_each_image_has_its_own_factor(scene):
    logits, labels = scene
    factors = torch.tensor([0.5, -3.0])
    (got,) = torch.autograd.grad(
        (kernels.focal_sums(logits, labels, **WEIGHTS) * factors).sum(), logits
    )
    (want,) = torch.autograd.grad((plain(logits, labels) * factors).sum(), logits)
    torch.testing.assert_close(got, want)


def test_the_second_derivative_is_that_of_the_plain_path(scene):
    logits, labels = scene
    results = []
    for function in (lambda *x: kernels.focal_sums(*x, **WEIGHTS), plain):
        (grad,) = torch.autograd.grad(function(logits, labels).sum(), logits, create_graph=True)
        results.append(torch.autograd.grad(grad.square().sum(), logits)[0])
    torch.testing.assert_close(*results)


def test_without_gradients_nothing_is_kept(scene):
    logits, labels = scene
    with torch.no_grad():
        values = kernels.focal_sums(logits, labels, **WEIGHTS)
    assert (
        not values.requires_grad
        and not kernels.focal_sums(logits.detach(), labels, **WEIGHTS).requires_grad
    )
    torch.testing.assert_close(values, plain(logits, labels))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_gradients_of_easy_negatives_survive_half_precision(dtype):
    # p = 1.2e-4: the gradient p^3 = 1.8e-12 is far below float16's smallest number; times a loss
    # scale of 2^20 it is not.
    logits = torch.full((1, 8, 3), -9.0, dtype=dtype, requires_grad=True)
    labels, scale = torch.full((1, 8), 3), 2.0**20
    (
        kernels.focal_sums(logits, labels, pos_weight=1.0, neg_weight=1.0, gamma=1.0) * scale
    ).sum().backward()
    p = torch.sigmoid(torch.tensor(-9.0, dtype=torch.float64))
    assert logits.grad.dtype == dtype
    want = torch.full_like(logits, scale * p * (p + (1 - p) * -torch.log1p(-p)))
    torch.testing.assert_close(logits.grad, want, rtol=0.01, atol=0)


def test_a_loss_scale_behaves(scene):
    logits, labels = scene
    scaler, weight = (
        torch.amp.GradScaler("cpu", init_scale=1024.0),
        torch.ones(4, requires_grad=True),
    )
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = kernels.focal_sums((logits.detach() * weight), labels, **WEIGHTS).sum()
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert weight.grad.isfinite().all() and (weight != 1).all() and scaler.get_scale() == 1024.0


@pytest.mark.parametrize("size", [(25, 34), (13, 17), (7, 9), (4, 5), (2, 3)])
def test_channels_last_outputs_of_the_head_are_not_copied(size):
    x = torch.randn(2, 9 * 4, *size).to(memory_format=torch.channels_last)
    level = permute_to_N_HWA_K(x, 4)
    assert level.data_ptr() == x.data_ptr() and level.is_contiguous()
    labels = torch.randint(-1, 5, level.shape[:2])
    grads = []
    for logits in (x.clone().requires_grad_(), x.contiguous().requires_grad_()):
        kernels.focal_sums(permute_to_N_HWA_K(logits, 4), labels, **WEIGHTS).sum().backward()
        grads.append(logits.grad)
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(
    "loss", [FocalLoss(gamma=0.5), FocalLoss(gamma=3.3), FocalStarLoss()], ids=repr
)
@pytest.mark.parametrize("num_classes", [1, 80, 1203])
def test_pieces_of_any_size_give_the_plain_sums(loss, dtype, num_classes, monkeypatch):
    monkeypatch.setattr(kernels.cpu, "_PIECE", 500)
    logits = (torch.randn(2, 333, num_classes) * 4).to(dtype)
    labels = torch.where(
        torch.rand(2, 333) < 0.1, torch.randint(-1, num_classes, (2, 333)), num_classes
    )
    results = []
    for supported in (True, False):
        monkeypatch.setattr(kernels, "is_supported", lambda x, value=supported: value)
        x = logits.clone().requires_grad_()
        values = loss.per_image(x, labels)
        values.sum().backward()
        results.append((values, x.grad))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=0)
    rtol = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1e-2}[dtype]
    torch.testing.assert_close(results[0][1], results[1][1], rtol=rtol, atol=1e-7)


def test_a_large_wrong_term_leaves_no_trace_in_the_sum():
    # As background the first logit costs 30; it is the anchor's class, which costs 1e-13. The
    # second costs 4e-9.
    logits, labels = torch.tensor([[30.0, -20.0]]), torch.tensor([0])
    want = torch.nn.functional.softplus(torch.tensor([-30.0, -20.0], dtype=torch.float64)).sum()
    got = focal_loss_from_labels(logits, labels, alpha=-1, gamma=0)
    torch.testing.assert_close(got.double(), want, rtol=1e-5, atol=0)


@pytest.mark.parametrize("loss", [FocalLoss(), FocalLoss(gamma=3.3), FocalStarLoss()], ids=repr)
def test_an_infinite_logit_of_the_own_class_costs_nothing(loss, monkeypatch):
    logits, labels = torch.randn(1, 6, 4), torch.tensor([[0, 3, -1, 4, 2, 1]])
    logits[0, [0, 1, 4], [0, 3, 2]] = torch.inf
    fast = loss.per_image(logits.requires_grad_(), labels)
    assert torch.autograd.grad(fast.sum(), logits)[0].isfinite().all()
    monkeypatch.setattr(kernels, "is_supported", lambda x: False)
    torch.testing.assert_close(fast, loss.per_image(logits, labels))


def test_it_needs_no_more_memory_than_the_gradient():
    logits, labels = torch.randn(200_000, 80, requires_grad=True), torch.full((200_000,), 80)

    losses = {
        "fast": lambda: focal_loss_from_labels(logits, labels, alpha=0.25, gamma=2),
        "plain": lambda: focal_loss_per_anchor(logits, labels, **WEIGHTS).sum(),
    }
    fast, plain = (
        measure_peak_bytes(lambda x=loss: torch.autograd.grad(x(), logits))
        for loss in losses.values()
    )
    assert 1 <= fast / (4 * logits.numel()) < 1.1 and plain / (4 * logits.numel()) > 3
