"""Hard example mining: growing candidates gives what NMS over all anchors gives."""

import pytest
import torch

from focal_det.losses import OHEMLoss, mine_hard_anchors
from focal_det.losses.targets import DenseTargets
from tests.losses.cases import mine_all

K = 4


@pytest.fixture(scope="module")
def anchors():
    """(R, 4) anchors of RetinaNet on a 256 px image, from stride 32 on, three shapes each."""
    boxes = []
    for stride in (32, 64, 128):
        centers = (torch.arange(256 // stride) + 0.5) * stride
        y, x = (v.flatten() for v in torch.meshgrid(centers, centers, indexing="ij"))
        for w, h in ((4.0, 4.0), (5.6, 2.8), (2.8, 5.6)):
            half = torch.tensor([w, h]) * stride / 2
            boxes.append(
                torch.cat([torch.stack([x, y], 1) - half, torch.stack([x, y], 1) + half], 1)
            )
    return torch.cat(boxes)


def make_losses(num_anchors, *, ties):
    """Losses, of which many are equal with `ties`, and labels of all kinds."""
    losses = torch.rand(num_anchors)
    labels = torch.where(torch.rand(num_anchors) < 0.1, torch.randint(K, (num_anchors,)), K)
    labels[torch.rand(num_anchors) < 0.1] = -1
    return (losses * 6).round() if ties else losses, labels


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("neg_per_pos", [0, 3])
@pytest.mark.parametrize("nms_thresh", [0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("batch", [1, 4, 32, 10000])
def test_equals_nms_over_all_anchors(anchors, batch, nms_thresh, neg_per_pos, ties):
    losses, labels = make_losses(len(anchors), ties=ties)
    args = {"batch": batch, "nms_thresh": nms_thresh, "neg_per_pos": neg_per_pos}
    got = mine_hard_anchors(losses, labels, anchors, num_classes=K, **args)
    targets = DenseTargets.build(labels[None], anchors[None], K, needs={"anchors"}, anchors=anchors)
    want = mine_all(losses, targets, 0, **args)
    assert got.tolist() == want


def test_one_to_three_keeps_the_ratio_with_few_positives(anchors):
    losses, labels = make_losses(len(anchors), ties=False)
    for num_pos, want in ((0, (0, 3)), (1, (1, 3)), (2, (2, 6)), (60, (8, 24))):
        labels[:] = K
        labels[torch.randperm(len(labels))[:num_pos]] = 1
        idxs = mine_hard_anchors(
            losses, labels, anchors, num_classes=K, batch=32, nms_thresh=1.0, neg_per_pos=3
        )
        assert ((labels[idxs] < K).sum().item(), (labels[idxs] == K).sum().item()) == want


def test_without_valid_anchors_the_minibatch_is_empty(anchors):
    args = {"num_classes": K, "batch": 8, "nms_thresh": 0.5, "neg_per_pos": 0}
    ignored = torch.full((len(anchors),), -1)
    assert len(mine_hard_anchors(torch.rand(len(anchors)), ignored, anchors, **args)) == 0
    assert len(mine_hard_anchors(torch.rand(0), ignored[:0], anchors[:0], **args)) == 0


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"batch": 2.5}, r"batch must be an integer in \[1, inf\), got 2.5"),
        ({"batch": 3, "neg_per_pos": 3}, r"neg_per_pos must be in \[0, 3\), got 3"),
    ],
)
def test_a_minibatch_that_cannot_be_made_is_refused(args, message):
    with pytest.raises(ValueError, match=message):
        OHEMLoss(**args)


def test_only_the_minibatch_gets_a_gradient(anchors):
    labels = torch.full((1, len(anchors)), K)
    logits = torch.randn(1, len(anchors), K, requires_grad=True)
    targets = DenseTargets.build(labels, anchors[None], K)
    OHEMLoss(batch=16)(
        [logits], DenseTargets(**{**vars(targets), "anchors": anchors[None]})
    ).sum().backward()
    assert (logits.grad != 0).any(dim=-1).sum() == 16
