"""RS loss: buckets give what the definition gives, and the update sorts."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import forward_ad
from torch.utils._python_dispatch import TorchDispatchMode

from focal_det.losses import RankSortLoss
from focal_det.losses.targets import DenseTargets
from tests.losses.cases import rank_sort
from tests.losses.test_contract import one_level, split, value_and_grad

K = 3
few = settings(max_examples=40, deadline=None)


def make_batch(labels, ious, logits):
    """Float64 logits (N, R, K) and targets."""
    logits = torch.as_tensor(logits, dtype=torch.float64)
    labels = torch.as_tensor(labels)
    targets = DenseTargets.build(labels, torch.zeros(*labels.shape, 4), logits.shape[-1])
    return logits, replace(targets, iou=torch.as_tensor(ious, dtype=torch.float32))


def make_random_batch(seed, *, step):
    """Logits and IoUs at multiples of `step` and of 1/4, so that many of them are equal."""
    torch.manual_seed(seed)
    labels = torch.randint(-1, K + 1, (3, 18))
    logits = (torch.randn(3, 18, K, dtype=torch.float64) * 3 / step).round() * step
    return make_batch(labels, torch.randint(0, 5, labels.shape) / 4, logits)


@few
@given(
    st.integers(0, 2**31),
    st.sampled_from([0.0, 0.5, 0.3, 1.7, 20.0]),
    st.sampled_from([1.0, 0.5, 0.1, 1e-6]),
)
def test_buckets_equal_the_definition_positive_by_positive(seed, delta, step):
    logits, targets = make_random_batch(seed, step=step)
    values, grad = value_and_grad(RankSortLoss(delta=delta), logits, targets)
    reference = rank_sort(delta=delta)
    want, want_grad = value_and_grad(
        lambda levels, targets: reference(torch.cat(levels, dim=1), targets), logits, targets
    )
    # Where a multiple of a step is also the end of a ramp that no float equals, one of the two
    # may count the other side: by 1e-16 of the ramp.
    torch.testing.assert_close(values, want, rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(grad, want_grad, rtol=1e-12, atol=1e-15)


def test_ranking_and_sorting_errors_by_hand():
    # Two objects with logits 0 and 2, where the higher one fits its box worse, and negatives at 3,
    # 1 and -9. delta 0: the first has 2 negatives of 4 logits at or above it, the second 1 of 2.
    # The first is missorted: its mean of 1 - y is (1/4 + 3/4) / 2 and should be 1/4.
    logits = [[[0.0, -9.0], [2.0, 3.0], [1.0, -9.0]]]
    logits, targets = make_batch([[0, 0, 2]], [[0.75, 0.25, 0.0]], logits)
    values, grad = value_and_grad(RankSortLoss(delta=0), logits, targets, one_level)
    assert values.tolist() == pytest.approx([(2 / 4 + 1 / 2 + 1 / 4) / 2])
    # Pulled up by 1/2 + 1/4, and by 1/2 while 1/4 is pushed down; negatives at 3 and 1 share 1/2,
    # and that at 3 takes another 1/2. All over two positives.
    want = [[-0.75, 0.0], [0.25 - 0.5, 0.25 + 0.5], [0.25, 0.0]]
    torch.testing.assert_close(grad[0], torch.tensor(want, dtype=torch.float64) / 2)


def test_what_is_pulled_up_is_pushed_down():
    logits, targets = make_random_batch(0, step=1e-6)
    _, grad = value_and_grad(RankSortLoss(), logits, targets, one_level)
    assert grad.sum().abs() < 1e-12 < grad.abs().sum()
    images, anchors = targets.pos_idxs
    own = grad[images, anchors, targets.gt_labels[images, anchors]]
    negatives = grad.index_put((images, anchors, targets.gt_labels[images, anchors]), own * 0)
    assert (negatives >= 0).all()


def test_images_and_levels_are_ranked_together():
    """A negative of another image and level counts; each image has its part of the mean."""
    logits, targets = make_batch([[0, 1], [0, 1]], [[1.0, 0.0]] * 2, [[[0.0], [-9.0]]] * 2)
    loss = RankSortLoss()

    def evaluate(logits):
        return loss(list(logits.split(1, dim=1)), targets)

    assert evaluate(logits).tolist() == [0.0, 0.0]
    logits[1, 1] = 9.0
    # Two positives at the same height are half above each other and themselves: rank 1 + 1.
    assert evaluate(logits).tolist() == [0.5, 0.5]
    assert evaluate(logits).mean() == 0.5


def test_descent_sorts_positives_by_their_iou():
    ious = torch.tensor([[0.5, 0.9, 0.6, 0.8, 0.7, 0.0, 0.0, 0.0]])
    labels = torch.tensor([[0, 1, 2, 0, 1, 3, 3, 3]])
    logits, targets = make_batch(labels, ious, torch.zeros(1, 8, 3))
    logits.requires_grad_()
    optimizer = torch.optim.SGD([logits], lr=0.5)
    for _ in range(200):
        optimizer.zero_grad()
        RankSortLoss()([logits], targets).sum().backward()
        optimizer.step()
    own = logits.detach()[0, range(5), labels[0, :5]]
    assert own.argsort().tolist() == ious[0, :5].argsort().tolist()
    assert own.min() > logits.detach()[0, 5:].max()
    assert RankSortLoss()([logits], targets).item() < 0.05


def test_an_iou_of_zero_remains_a_positive():
    """In the authors' code, it becomes a negative."""
    logits, targets = make_batch([[0, 1]], [[0.0, 0.0]], [[[0.0], [0.0]]])
    values, grad = value_and_grad(RankSortLoss(), logits, targets, one_level)
    assert values.item() == 0.5 and grad.flatten().tolist() == [-0.5, 0.5]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_saturated_logits_are_finite(dtype):
    logits, targets = make_random_batch(1, step=1.0)
    largest = min(torch.finfo(dtype).max, 1e30)
    logits = (logits.sign() * largest).to(dtype)
    values, grad = value_and_grad(RankSortLoss(), logits, targets)
    assert values.isfinite().all() and grad.isfinite().all() and values.sum() > 0


@pytest.mark.parametrize("delta", [0.0, 0.5])
@pytest.mark.parametrize("label", [K, 0])
def test_nan_is_never_hidden(delta, label):
    """Not by a step, nor where there is no positive that it could be compared with."""
    logits, targets = make_batch([[label, K]], [[1.0, 0.0]], torch.zeros(1, 2, K))
    logits[0, 0, 0] = math.nan
    assert RankSortLoss(delta=delta)([logits], targets).isnan().all()


def test_without_positives_nothing_is_ranked():
    logits, targets = make_batch([[K, -1]] * 2, [[0.0, 0.0]] * 2, torch.randn(2, 2, K))
    values, grad = value_and_grad(RankSortLoss(), logits, targets, one_level)
    assert values.tolist() == [0.0, 0.0] and not grad.any()


def test_an_iou_out_of_range_is_refused():
    logits, targets = make_batch([[0]], [[1.5]], torch.zeros(1, 1, K))
    with pytest.raises(ValueError, match=r"iou must be in \[0, 1\]"):
        RankSortLoss()([logits], targets)


def test_there_is_no_second_derivative():
    logits, targets = make_random_batch(2, step=1e-6)
    logits.requires_grad_()
    (grad,) = torch.autograd.grad(
        RankSortLoss()(split(logits), targets).sum(), logits, create_graph=True
    )
    with pytest.raises(RuntimeError):
        torch.autograd.grad(grad.square().sum(), logits)


def test_forward_mode_takes_a_tangent_of_one_level():
    logits, targets = make_random_batch(3, step=1e-6)
    levels = [x.clone().requires_grad_() for x in split(logits)]
    grads = torch.autograd.grad(RankSortLoss()(levels, targets).sum(), levels)
    tangent = torch.randn_like(levels[2])
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(levels[2].detach(), tangent)
        values = RankSortLoss()([levels[0].detach(), levels[1].detach(), dual], targets)
        got = forward_ad.unpack_dual(values).tangent
    torch.testing.assert_close(got.sum(), (grads[2] * tangent).sum())


class CountOperations(TorchDispatchMode):
    """Counts operations, and the elements of the largest tensor that one of them makes."""

    def __init__(self):
        super().__init__()
        self.count = 0
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        outputs = func(*args, **(kwargs or {}))
        self.count += 1
        for x in outputs if isinstance(outputs, (tuple, list)) else [outputs]:
            if isinstance(x, torch.Tensor):
                self.largest = max(self.largest, x.numel())
        return outputs


def test_no_loop_and_no_matrix_of_positives_by_negatives():
    num_anchors = 5000
    modes = []
    for num_positives in (10, 40):
        labels = torch.full((1, num_anchors), K)
        labels[0, :num_positives] = 0
        logits, targets = make_batch(
            labels, torch.rand(labels.shape), torch.randn(1, num_anchors, K)
        )
        with CountOperations() as mode:
            value_and_grad(RankSortLoss(), logits, targets, one_level)
        modes.append(mode)
    assert modes[0].count == modes[1].count
    assert {x.largest for x in modes} == {num_anchors * K}
