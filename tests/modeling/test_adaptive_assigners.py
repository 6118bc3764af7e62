"""ATSS and task-aligned labels, compared with loops over boxes and anchors in float64."""

import math

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from hypothesis import given, settings
from hypothesis import strategies as st

from focal_det.env import load_config
from focal_det.modeling import adaptive_assigners
from focal_det.modeling.adaptive_assigners import (
    ATSSAssigner,
    TaskAlignedAssigner,
    take_largest,
)
from tests.conftest import make_batch, make_step

NUM_CLASSES = 3
NAME = ["MODEL.FOCAL_DET.ASSIGNER.NAME"]
ARGS = "MODEL.FOCAL_DET.ASSIGNER.ARGS"
DEGENERATE = [
    [20.0, 20.0, 20.0, 40.0],
    [30.0, 30.0, 20.0, 20.0],
    [math.nan, 0.0, 10.0, 10.0],
    [5000.0, 5000.0, 5100.0, 5100.0],
    [0.0, 0.0, 1e30, 1e30],
]


def make_level(stride, sizes):
    cells = range(64 // stride)
    corners = []
    for y in cells:
        for x in cells:
            center = torch.tensor([x + 0.5, y + 0.5]) * stride
            corners += [torch.cat([center - size / 2, center + size / 2]) for size in sizes]
    return Boxes(torch.stack(corners))


ASSIGNERS = [
    pytest.param(ATSSAssigner(num_classes=NUM_CLASSES, anchors_per_cell=2), id="ATSS"),
    pytest.param(TaskAlignedAssigner(num_classes=NUM_CLASSES), id="TaskAligned"),
]
# Anchors of a power of two have exact IoUs and distances, so that ties are ties in both.
ANCHORS = [make_level(8, [16, 32]), make_level(16, [32, 64]), make_level(32, [64, 128])]


def make_instances(boxes):
    instances = Instances((64, 64))
    instances.gt_boxes = Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4))
    instances.gt_classes = torch.arange(len(boxes)) % NUM_CLASSES
    return instances


def compute_iou(a, b):
    """Of two boxes, each a list of four numbers."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if not (width > 0 and height > 0):
        return 0.0
    inter = width * height
    return inter / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter)


def get_center(box):
    return (box[0] + box[2]) / 2, (box[1] + box[3]) / 2


def has_center_of(box, anchor):
    x, y = get_center(anchor)
    return box[0] < x < box[2] and box[1] < y < box[3]


def resolve(taken, num_anchors):
    """Labels and boxes from what each box takes: (box, anchor, overlap)."""
    labels = [NUM_CLASSES] * num_anchors
    best = [-1.0] * num_anchors
    owners = [None] * num_anchors
    for box, anchor, overlap in taken:
        if overlap > best[anchor]:
            best[anchor] = overlap
            labels[anchor] = box % NUM_CLASSES
            owners[anchor] = box
    return labels, owners


def label_as_atss(boxes, topk, anchors_per_cell):
    anchors = [level.tensor.double().tolist() for level in ANCHORS]
    taken = []
    for i, box in enumerate(boxes):
        candidates = []
        first = 0
        for level in anchors:
            distances = [math.dist(get_center(box), get_center(x)) ** 2 for x in level]
            order = sorted(range(len(level)), key=lambda j: (distances[j], j))
            candidates += [first + j for j in order[: topk * anchors_per_cell]]
            first += len(level)
        flat = [x for level in anchors for x in level]
        ious = [compute_iou(box, flat[j]) for j in candidates]
        mean = sum(ious) / len(ious)
        std = math.sqrt(sum((x - mean) ** 2 for x in ious) / (len(ious) - 1))
        for j, iou in zip(candidates, ious):
            # A difference of rounding decides nothing.
            if iou >= mean + std - 1e-6 and has_center_of(box, flat[j]) and iou > 0:
                taken.append((i, j, iou))
    return resolve(taken, sum(map(len, ANCHORS)))


def label_as_task_aligned(boxes, predictions, topk, alpha, beta):
    flat = [x for level in ANCHORS for x in level.tensor.double().tolist()]
    pred_boxes = predictions.pred_boxes.tensor.double().tolist()
    scores = predictions.scores.double().tolist()
    taken = []
    for i, box in enumerate(boxes):
        ious = [compute_iou(box, x) for x in pred_boxes]
        aligned = [s[i % NUM_CLASSES] ** alpha * u**beta for s, u in zip(scores, ious)]
        order = sorted(range(len(flat)), key=lambda j: (-aligned[j], j))[:topk]
        for j in sorted(order):
            if aligned[j] > 0 and has_center_of(box, flat[j]):
                taken.append((i, j, ious[j]))
    return resolve(taken, len(flat))


def assert_labels(assignment, labels, owners):
    assert assignment.gt_labels.tolist() == labels
    for matched, owner in zip(assignment.matched_idxs.tolist(), owners):
        assert owner in (None, matched)


def make_predictions(seed=0, jitter=6.0):
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.cat([x.tensor for x in ANCHORS])
    boxes = anchors + jitter * torch.randn(anchors.shape, generator=generator)
    scores = torch.rand(len(anchors), NUM_CLASSES, generator=generator)
    return Instances((0, 0), pred_boxes=Boxes(boxes), scores=scores)


def on_grid(step):
    """Up to six boxes; with a step of 8 px, that of the anchors, many distances and IoUs tie."""
    side = st.integers(1, 56 // step)
    corner = st.integers(-8 // step, 60 // step)
    box = st.tuples(corner, corner, side, side)
    return st.lists(
        box.map(lambda b: [float(step * x) for x in (b[0], b[1], b[0] + b[2], b[1] + b[3])]),
        max_size=6,
    )


@pytest.mark.parametrize(("topk", "anchors_per_cell"), [(9, 2), (4, 1), (1, 2), (100, 2)])
@given(boxes=on_grid(8) | on_grid(1), limit=st.sampled_from([1, 400, 2**22]))
@settings(max_examples=40, deadline=None)
def test_atss_labels_are_those_of_the_paper(topk, anchors_per_cell, boxes, limit):
    assigner = ATSSAssigner(num_classes=NUM_CLASSES, anchors_per_cell=anchors_per_cell, topk=topk)
    with pytest.MonkeyPatch.context() as patch:
        # Boxes one by one, some at a time, or all.
        patch.setattr(adaptive_assigners, "_MAX_PAIRS", limit)
        got = assigner.assign(ANCHORS, make_instances(boxes))
    near = ATSSAssigner(num_classes=NUM_CLASSES, anchors_per_cell=anchors_per_cell, topk=topk)
    assert near.assign(ANCHORS, make_instances(boxes)).gt_labels.equal(got.gt_labels)
    labels, owners = label_as_atss(boxes, topk, anchors_per_cell)
    assert_labels(got, labels, owners)


@pytest.mark.parametrize(
    ("topk", "alpha", "beta"), [(13, 1.0, 6.0), (3, 0.5, 1.0), (500, 0.0, 2.0)]
)
@given(boxes=on_grid(8) | on_grid(1), seed=st.integers(0, 20), limit=st.sampled_from([1, 2**22]))
@settings(max_examples=40, deadline=None)
def test_task_aligned_labels_are_those_of_the_paper(topk, alpha, beta, boxes, seed, limit):
    assigner = TaskAlignedAssigner(num_classes=NUM_CLASSES, topk=topk, alpha=alpha, beta=beta)
    predictions = make_predictions(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adaptive_assigners, "_MAX_PAIRS", limit)
        got = assigner.assign(ANCHORS, make_instances(boxes), predictions)
    labels, owners = label_as_task_aligned(boxes, predictions, topk, alpha, beta)
    assert_labels(got, labels, owners)


@pytest.mark.parametrize("box", DEGENERATE)
@pytest.mark.parametrize("assigner", ASSIGNERS)
def test_a_degenerate_box_takes_no_anchor(assigner, box):
    good = [10.0, 10.0, 42.0, 42.0]
    want = assigner.assign(ANCHORS, make_instances([good]), make_predictions())
    got = assigner.assign(ANCHORS, make_instances([good, box]), make_predictions())
    assert got.gt_labels.equal(want.gt_labels)
    assert (want.gt_labels == 0).any()
    alone = assigner.assign(ANCHORS, make_instances([box]), make_predictions())
    assert (alone.gt_labels == NUM_CLASSES).all()
    assert got.without_anchor.tolist() == [False, True]


@pytest.mark.parametrize("assigner", ASSIGNERS)
def test_an_image_without_boxes_is_background(assigner):
    got = assigner.assign(ANCHORS, make_instances([]), make_predictions())
    assert (got.gt_labels == NUM_CLASSES).all() and len(got.without_anchor) == 0
    assert not got.matched_idxs.any()


@pytest.mark.parametrize("assigner", ASSIGNERS)
def test_off_the_cpu_labels_need_no_value(assigner):
    """Tensors of the meta device have none: what waits for the device, fails."""
    anchors = [Boxes(x.tensor.to("meta")) for x in ANCHORS]
    gt = make_instances([[10.0, 10.0, 42.0, 42.0], [20.0, 20.0, 20.0, 40.0]]).to("meta")
    got = assigner.assign(anchors, gt, make_predictions().to("meta"))
    num_anchors = sum(map(len, ANCHORS))
    assert [tuple(x.shape) for x in got] == [(num_anchors,), (num_anchors,), (2,)]


def test_candidates_of_the_same_iou_are_positive():
    """Their mean may be rounded up, above all of them."""
    assigner = ATSSAssigner(num_classes=NUM_CLASSES, anchors_per_cell=1)
    for side in torch.arange(24, 28, 0.25).tolist():
        anchors = [make_level(8, [8])]
        got = assigner.assign(anchors, make_instances([[16.0, 16.0, 16.0 + side, 16.0 + side]]))
        # The cells that the box contains.
        assert int((got.gt_labels == 0).sum()) == 9


def test_a_box_without_a_predicted_one_is_not_reported():
    """It overlaps anchors, so its annotation is right."""
    predictions = make_predictions()
    predictions.pred_boxes = Boxes(torch.full_like(predictions.pred_boxes.tensor, math.nan))
    assigner = TaskAlignedAssigner(num_classes=NUM_CLASSES)
    got = assigner.assign(ANCHORS, make_instances([[10.0, 10.0, 42.0, 42.0]]), predictions)
    assert (got.gt_labels == NUM_CLASSES).all() and not got.without_anchor.any()


def test_of_equal_values_the_first_are_taken():
    values = torch.tensor([[1.0, 3, 3, 2, 3], [0, 0, 0, 0, 0]])
    assert take_largest(values, 2).tolist() == [
        [False, True, True, False, False],
        [True, True, False, False, False],
    ]


@pytest.mark.parametrize("name", ["ATSSAssigner", "TaskAlignedAssigner"])
def test_a_detector_trains_with_it(name):
    words = ["MODEL.FOCAL_DET.ASSIGNER.NAME", name]
    model = build_model(load_config("digits/focal_retinanet_tiny.yaml", words))
    make_step(model, num_classes=10)
    assert type(model.assigner).__name__ == name


def test_labels_follow_what_the_detector_predicts():
    """The anchors of a box are those with the best scores for its class."""
    words = ["MODEL.FOCAL_DET.ASSIGNER.NAME", "TaskAlignedAssigner"]
    model = build_model(load_config("digits/focal_retinanet_tiny.yaml", words)).train()
    (image,) = make_batch([[16, 16, 64, 64]], num_classes=10)
    _, anchors, logits, deltas = model.predict([image])
    instances = [image["instances"]]
    predictions = model.decode_predictions(anchors, logits, deltas)
    (before,), _ = model.label_anchors(anchors, instances, predictions=predictions)
    target = int(image["instances"].gt_classes[0])
    first = int((before == target).nonzero()[0])
    logits = torch.cat(logits, dim=1)
    logits[0, first, target] = -50.0
    predictions = model.decode_predictions(anchors, [logits], deltas)
    (after,), _ = model.label_anchors(anchors, instances, predictions=predictions)
    assert after[first] == 10 and (after == target).any()


@pytest.mark.parametrize("sizes", ["[[16], [32], [64], [128], [256]]", "[[16, 24]]", "[16, 24]"])
def test_anchors_of_a_cell_are_read_from_the_config(sizes):
    words = ["MODEL.ANCHOR_GENERATOR.SIZES", sizes, *NAME, "ATSSAssigner"]
    words += [f"{ARGS}.ATSSAssigner.topk", "5"]
    assigner = build_model(load_config("digits/focal_retinanet_tiny.yaml", words)).assigner
    assert assigner.topk == 5
    assert assigner.anchors_per_cell == (3 if sizes.startswith("[[16],") else 6)


def test_every_argument_is_a_key():
    words = [*NAME, "TaskAlignedAssigner"]
    for name, value in (("topk", "7"), ("alpha", "0.5"), ("beta", "2.0")):
        words += [f"{ARGS}.TaskAlignedAssigner.{name}", value]
    assigner = build_model(load_config("digits/focal_retinanet_tiny.yaml", words)).assigner
    assert (assigner.topk, assigner.alpha, assigner.beta) == (7, 0.5, 2.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: ATSSAssigner(num_classes=1, anchors_per_cell=1, topk=0),
            "topk must be at least 1, got 0",
        ),
        (lambda: TaskAlignedAssigner(num_classes=1, topk=0), "topk must be at least 1, got 0"),
        (lambda: TaskAlignedAssigner(num_classes=1, beta=-1.0), "beta must be at least 0, got -1"),
        (
            lambda: TaskAlignedAssigner(num_classes=1).assign(ANCHORS, make_instances([])),
            "needs the predictions",
        ),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
