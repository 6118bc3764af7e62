"""The contract of a loss: what each registered one keeps to, with a float64 reference as judge.

On the whole grid of constructor arguments (`on_grid`) run the tests whose outcome the arguments
decide: the value and first gradient of a batch and of single anchors, three steps of a state,
and finite numbers at every logit. The labels of their scenes hold every kind, ignored ones
included, and levels of several sizes, so that a wrong sum or mask shows there at any arguments.

Once per loss (`once`), with arguments under which every term counts (`Case.usual`), run the tests
of how a loss is built: second derivatives, ignored anchors with non-finite logits, order and
partition of anchors, transforms, precision, memory layout, state, compilation. No loss branches on
its arguments there, with one exception, the fast path of the focal losses. A loss in
WITH_FAST_PATH therefore goes through every test twice, with that path and without it.
"""

import copy
import math
import shutil

import pytest
import torch

from focal_det.losses import kernels
from focal_det.losses.targets import DenseTargets
from focal_det.registry import CLS_LOSS_REGISTRY
from tests.losses.cases import CASES, IOUS, NUM_CLASSES

NAMES = sorted(dict(CLS_LOSS_REGISTRY))
USUAL = [(name, CASES[name].usual) for name in NAMES if name in CASES]
GRID = [(name, args) for name, _ in USUAL for args in CASES[name].arguments]
# These have a fast path; the plain one, which is the definition, goes through the same tests.
WITH_FAST_PATH = ("FocalLoss", "FocalStarLoss", "SamplingFreeLoss")
LEVEL_SIZES = (13, 0, 5)
NUM_ANCHORS = sum(LEVEL_SIZES)


def name_of(value) -> str:
    return value if isinstance(value, str) else ",".join(f"{k}={v}" for k, v in value.items())


def parametrize(cases):
    """Run a test with (name, args) cases, and once more where a loss has a fast path."""
    with_path = []
    for name, args in cases:
        with_path.append((name, args, "plain"))
        if name in WITH_FAST_PATH:
            with_path.append((name, args, "fast"))
    return pytest.mark.parametrize(
        ("name", "args", "path"), with_path, ids=name_of, indirect=["path"]
    )


def is_stateful(name: str) -> bool:
    return CLS_LOSS_REGISTRY.get(name).stateful


on_grid = parametrize(GRID)
once = parametrize(USUAL)


@pytest.fixture(autouse=True)
def path(request, monkeypatch):
    """The fast path of a loss, or what it does where it has none."""
    if getattr(request, "param", "fast") == "plain":
        monkeypatch.setattr(kernels, "is_supported", lambda logits: False)


def build(name, args, num_classes=NUM_CLASSES):
    return CLS_LOSS_REGISTRY.build(name, args, num_classes=num_classes)


def make_targets(labels, num_classes=NUM_CLASSES):
    """Targets with all that a loss may need; anchors overlap each other in part."""
    num_images, num_anchors = labels.shape
    corner = torch.rand(num_images, num_anchors, 2) * 60
    anchors = torch.cat([corner, corner + 20 + torch.rand(corner.shape) * 20], dim=2)
    pos_mask = (labels >= 0) & (labels < num_classes)
    iou = torch.where(pos_mask, torch.tensor(IOUS)[torch.randint(len(IOUS), labels.shape)], 0.0)
    targets = DenseTargets.build(labels, torch.zeros(num_images, num_anchors, 4), num_classes)
    return DenseTargets(**{**vars(targets), "anchors": anchors, "iou": iou})


def avoid_kinks(logits, name, args):
    """Move logits by two radii where they are near a kink."""
    for kink in CASES[name].kinks(**args):
        logits = torch.where(
            (logits - kink).abs() < CASES[name].radius, kink + 2 * CASES[name].radius, logits
        )
    return logits


def make_scene(
    name, args, size=30.0, dtype=torch.float32, num_classes=NUM_CLASSES, num_anchors=NUM_ANCHORS
):
    """A loss, logits (3, R, C) in [-size, size], and targets with every kind of label.

    The logits are float32 numbers whatever their dtype.
    """
    loss = build(name, args, num_classes)
    labels = torch.randint(-1, num_classes + 1, (3, num_anchors))
    logits = (torch.rand(*labels.shape, loss.num_outputs(num_classes)) * 2 - 1) * size
    return loss, avoid_kinks(logits, name, args).to(dtype), make_targets(labels, num_classes)


def split(logits):
    """Levels of different sizes, one of them without anchors."""
    return logits.split(LEVEL_SIZES, dim=1)


def one_level(logits):
    return [logits]


def two_levels(logits):
    """Levels of one size, for which torch compiles once."""
    return logits.chunk(2, dim=1)


def value_and_grad(loss, logits, targets, levels=split):
    """(N,) values, and the gradient of their sum with respect to (N, R, C) logits."""
    logits = logits.detach().clone().requires_grad_()
    values = loss(levels(logits), targets)
    return values.detach(), torch.autograd.grad(values.sum(), logits)[0]


def assert_close_to_float64(got, want):
    """Within 1e-5 of the reference where that exceeds 1e-30, within 1e-30 below."""
    error = (got.double() - want).abs()
    allowed = torch.where(want.abs() > 1e-30, 1e-5 * want.abs(), 1e-30)
    worst = (error - allowed).argmax()
    assert (error <= allowed).all(), f"{got.flatten()[worst]} is not {want.flatten()[worst]}"


def assert_equals_reference(loss, reference, logits, targets, levels=split):
    values, grad = value_and_grad(loss, logits, targets, levels)
    want, want_grad = value_and_grad(reference, logits.double(), targets, levels)
    assert values.shape == (len(logits),) and values.dtype == torch.float32
    assert_close_to_float64(values, want)
    assert_close_to_float64(grad, want_grad)


def test_every_registered_loss_has_a_case():
    assert set(NAMES) == set(CASES), "add a Case with a reference to tests/losses/cases.py"


@on_grid
def test_value_and_gradient_equal_the_reference(name, args):
    for size in (30.0, 4.0):
        loss, logits, targets = make_scene(name, args, size)
        assert_equals_reference(loss, CASES[name].make_reference(args), logits, targets)


@on_grid
def test_each_single_anchor_equals_the_reference(name, args):
    # One anchor an image, so that no large term hides a small one. The logits meet in all
    # combinations of -30 to 30 by 5.
    steps = torch.arange(-30.0, 31, 5)
    loss = build(name, args)
    num_outputs = loss.num_outputs(NUM_CLASSES)
    logits = torch.cartesian_prod(steps, steps)[:, torch.arange(num_outputs) % 2][:, None]
    targets = make_targets(torch.arange(len(logits))[:, None] % (NUM_CLASSES + 1))
    logits = avoid_kinks(logits, name, args)
    values, grad = value_and_grad(loss, logits, targets, one_level)
    want, want_grad = value_and_grad(
        CASES[name].make_reference(args), logits.double(), targets, one_level
    )
    assert_close_to_float64(values, want)
    assert_close_to_float64(grad, want_grad)


@parametrize([x for x in GRID if is_stateful(x[0])])
def test_three_steps_of_a_stateful_loss_equal_the_reference(name, args):
    loss, reference = build(name, args), CASES[name].make_reference(args)
    for _ in range(3):
        _, logits, targets = make_scene(name, args, size=6.0)
        assert_equals_reference(loss, reference, logits, targets)


@parametrize([x for x in USUAL if not CASES[x[0]].error_driven])
def test_first_and_second_derivatives_pass_gradcheck(name, args):
    loss, logits, targets = make_scene(name, args, size=4.0, dtype=torch.float64)
    logits, loss = logits[:2, :4].clone().requires_grad_(), loss.eval()
    targets = make_targets(targets.gt_labels[:2, :4])

    def function(x):
        return loss(x.split([3, 1], dim=1), targets)

    assert torch.autograd.gradcheck(function, logits, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, logits)


@once
def test_function_transforms_agree_with_autograd(name, args):
    loss, logits, targets = make_scene(name, args, size=4.0)
    tangent, before = torch.randn_like(logits), copy.deepcopy(loss.state_dict())

    def function(x):
        return loss(split(x), targets).sum()

    got = torch.func.grad(function)(logits)
    value, got_tangent = torch.func.jvp(function, (logits,), (tangent,))
    # They are of a pure function, so that nothing of them stays in a state.
    torch.testing.assert_close(loss.state_dict(), before)
    want_value, want = value_and_grad(loss, logits, targets)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(value, want_value.sum())
    torch.testing.assert_close(got_tangent, (want * tangent).sum())


@on_grid
def test_value_and_gradient_are_finite_at_every_logit(name, args):
    extremes = torch.tensor(
        [-1e4, -300, -104, -88, -30, -17.4, -1, 0, 1, 16.7, 30, 88, 104, 300, 1e4]
    )
    loss = build(name, args)
    for _ in range(2):  # a stateful loss once more, with the state that these logits left
        num_outputs = loss.num_outputs(NUM_CLASSES)
        logits = extremes[torch.randint(len(extremes), (4, 50, num_outputs))]
        logits[0, :15] = extremes[:, None].expand(15, num_outputs)
        values, grad = value_and_grad(
            loss, logits, make_targets(torch.randint(-1, NUM_CLASSES + 1, (4, 50))), one_level
        )
        assert values.isfinite().all() and grad.isfinite().all() and (values >= 0).all()


@once
def test_descent_ranks_objects_above_background(name, args):
    _, logits, targets = make_scene(name, args)
    loss = build(name, {})
    bias = loss.bias(0.01, NUM_CLASSES)
    logits = bias.expand_as(logits).clone().requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(80):
        optimizer.zero_grad()
        loss(split(logits), targets).sum().backward()
        optimizer.step()
    scores, (images, anchors) = loss.scores(logits.detach()), targets.pos_idxs
    own = scores[images, anchors, targets.gt_labels[images, anchors]]
    background = scores[targets.gt_labels == NUM_CLASSES]
    assert own.min() > CASES[name].contrast * background.max()


@once
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(name, args, dtype):
    loss, logits, targets = make_scene(name, args, size=8.0)
    twin, logits = copy.deepcopy(loss), logits.to(dtype)
    values, grad = value_and_grad(loss, logits, targets)
    want, want_grad = value_and_grad(twin, logits.float(), targets)
    assert values.dtype == torch.float32 and grad.dtype == dtype
    torch.testing.assert_close(values, want)
    torch.testing.assert_close(grad, want_grad.to(dtype))


@once
def test_ignored_anchors_cost_nothing_and_get_no_gradient(name, args):
    loss, logits, targets = make_scene(name, args)
    values, grad = value_and_grad(loss, logits, targets)
    assert (grad[targets.gt_labels == -1] == 0).all()
    all_ignored = make_targets(torch.full_like(targets.gt_labels, -1))
    values, grad = value_and_grad(build(name, args), logits, all_ignored)
    assert (values == 0).all() and (grad == 0).all()


@once
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_ignored_logits_may_be_non_finite(name, args, value):
    # Twice, so that a state would show it.
    loss, logits, targets = make_scene(name, args, size=6.0)
    twin, ignored = copy.deepcopy(loss), targets.gt_labels == -1
    filled = logits.masked_fill(ignored[..., None], value)
    filled[..., 0] = logits[..., 0]  # in some classes only
    for _ in range(2):
        values, grad = value_and_grad(loss, filled, targets)
        want, want_grad = value_and_grad(twin, logits, targets)
        torch.testing.assert_close(values, want)
        torch.testing.assert_close(grad, want_grad)
        assert (grad[ignored] == 0).all()
    torch.testing.assert_close(loss.state_dict(), twin.state_dict())


@once
def test_a_logit_that_counts_and_is_nan_gives_nan(name, args):
    loss, logits, targets = make_scene(name, args)
    targets.gt_labels[0, 0] = NUM_CLASSES
    logits[0, 0, 0] = math.nan
    assert loss(split(logits), targets)[0].isnan()


@once
def test_background_alone_and_one_class(name, args):
    _, logits, targets = make_scene(name, args, num_classes=1)
    background = make_targets(torch.full_like(targets.gt_labels, 1), 1)
    for labels in (targets, background):
        reference = CASES[name].make_reference(args, num_classes=1)
        assert_equals_reference(build(name, args, 1), reference, logits, labels)


@once
@pytest.mark.parametrize(
    ("num_classes", "level_sizes"),
    [
        pytest.param(1, (192, 48, 12, 3, 3), id="RPN"),
        pytest.param(NUM_CLASSES, (512,), id="box head"),
    ],
)
def test_shapes_of_both_stages(name, args, num_classes, level_sizes):
    """One class on several levels; or a sample of proposals, which each image has of its own."""
    num_anchors = sum(level_sizes)
    loss, logits, targets = make_scene(
        name, args, size=4.0, num_classes=num_classes, num_anchors=num_anchors
    )
    reference = CASES[name].make_reference(args, num_classes=num_classes)

    def split_stage(logits):
        return logits.split(level_sizes, dim=1)

    assert_equals_reference(loss, reference, logits, targets, split_stage)


@once
def test_incomplete_targets_are_refused(name, args):
    loss, logits, targets = make_scene(name, args)
    for need in loss.needs:
        with pytest.raises(
            ValueError, match=f"{name} needs `{need}` in its DenseTargets, got None"
        ):
            loss(split(logits), DenseTargets(**{**vars(targets), need: None}))
    with pytest.raises(ValueError, match=r"labels must be int64, got torch.int32"):
        loss(split(logits), DenseTargets(**{**vars(targets), "gt_labels": targets.gt_labels.int()}))


@once
@pytest.mark.parametrize(("num_images", "num_anchors"), [(2, 0), (0, 5)])
def test_no_anchors_and_no_images(name, args, num_images, num_anchors):
    loss = build(name, args)
    logits = torch.zeros(num_images, num_anchors, loss.num_outputs(NUM_CLASSES))
    targets = make_targets(torch.zeros(num_images, num_anchors, dtype=torch.int64))
    values, grad = value_and_grad(loss, logits, targets, one_level)
    assert values.tolist() == [0.0] * num_images and grad.shape == logits.shape


@once
def test_memory_layout_does_not_matter(name, args):
    loss, logits, targets = make_scene(name, args)
    (twin, want) = copy.deepcopy(loss), value_and_grad(loss, logits, targets)
    # As Detectron2's permute leaves a level: (N, C, R) storage seen as (N, R, C).
    values, grad = value_and_grad(
        twin, logits, targets, lambda x: split(x.transpose(1, 2).contiguous().transpose(1, 2))
    )
    torch.testing.assert_close(values, want[0])
    torch.testing.assert_close(grad, want[1])


@once
def test_arguments_and_global_state_are_left_alone(name, args):
    loss, logits, targets = make_scene(name, args)
    before, labels, state = logits.clone(), targets.gt_labels.clone(), torch.get_rng_state()
    for enabled in (True, False):
        with torch.set_grad_enabled(enabled):
            values = loss(split(logits.requires_grad_(enabled)), targets)
            assert torch.is_grad_enabled() == enabled and values.requires_grad == enabled
    assert torch.equal(logits, before) and torch.equal(targets.gt_labels, labels)
    assert torch.equal(torch.get_rng_state(), state)


@parametrize([x for x in USUAL if CLS_LOSS_REGISTRY.get(x[0]).pointwise])
def test_order_and_partition_of_anchors_do_not_matter(name, args):
    loss, logits, targets = make_scene(name, args, dtype=torch.float64)
    want, want_grad = value_and_grad(loss, logits, targets)

    def part(idxs):
        subset = {k: getattr(targets, k)[:, idxs] for k in ("gt_labels", "gt_boxes", "iou")}
        return DenseTargets(**{**vars(targets), **subset, "anchors": targets.anchors[:, idxs]})

    order = torch.randperm(logits.shape[1])
    values, grad = value_and_grad(loss, logits[:, order], part(order))
    torch.testing.assert_close(values, want)
    torch.testing.assert_close(grad, want_grad[:, order])
    parts = [
        value_and_grad(loss, logits[:, idxs], part(idxs), one_level)[0]
        for idxs in (order[:8], order[8:])
    ]
    torch.testing.assert_close(sum(parts), want)


@once
def test_only_training_moves_a_declared_state(name, args):
    loss, logits, targets = make_scene(name, args, size=6.0)
    before = copy.deepcopy(loss.state_dict())
    assert bool(before) == loss.stateful
    loss.eval()(split(logits), targets)
    with torch.no_grad():
        loss.train()(split(logits), targets)
    assert all(torch.equal(v, before[k]) for k, v in loss.state_dict().items())
    loss(split(logits), targets)
    assert any(not torch.equal(v, before[k]) for k, v in loss.state_dict().items()) == loss.stateful


@parametrize([x for x in USUAL if is_stateful(x[0])])
def test_state_is_saved_and_resumed_bit_equal(name, args, tmp_path):
    loss, logits, targets = make_scene(name, args, size=6.0)
    loss(split(logits), targets)
    torch.save(loss.state_dict(), tmp_path / "loss.pth")
    resumed = build(name, args)
    resumed.load_state_dict(torch.load(tmp_path / "loss.pth", weights_only=True))
    for _ in range(2):
        assert torch.equal(loss(split(logits), targets), resumed(split(logits), targets))
    # A checkpoint of another loss, such as Detectron2's, lacks the buffers and loads all the same.
    assert not build(name, args).load_state_dict({}).missing_keys


def check_compiled(name, args, backend):
    """Values, gradients and state of three steps of training."""
    loss = build(name, args)
    compiled = copy.deepcopy(loss)
    compiled.compile(backend=backend)
    for _ in range(3):
        _, logits, targets = make_scene(name, args, size=6.0)
        want, want_grad = value_and_grad(loss, logits, targets, two_levels)
        values, grad = value_and_grad(compiled, logits, targets, two_levels)
        torch.testing.assert_close(values, want)
        torch.testing.assert_close(grad, want_grad)
        torch.testing.assert_close(compiled.state_dict(), loss.state_dict())
    torch.compiler.reset()


@once
def test_compiled_equals_eager(name, args):
    check_compiled(name, args, "aot_eager")


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")), reason="inductor needs a C++ compiler"
)
@once
def test_compiled_by_inductor_equals_eager(name, args):
    check_compiled(name, args, "inductor")


@once
def test_the_bias_gives_the_prior(name, args):
    loss = build(name, args)
    for prior in (0.01, 0.3):
        scores = loss.scores(loss.bias(prior, NUM_CLASSES))
        total = scores.sum() if loss.num_outputs(NUM_CLASSES) > NUM_CLASSES else scores.mean()
        assert total.item() == pytest.approx(prior, rel=1e-5)
    priors = [0.01, 0.1, 0.003]
    torch.testing.assert_close(loss.scores(loss.bias(priors, NUM_CLASSES)), torch.tensor(priors))


@once
@pytest.mark.parametrize(
    ("prior", "message"),
    [
        (0, r"prior must be in \(0, 1\), got 0.0"),
        (math.nan, r"prior must be in \(0, 1\)"),
        (
            [0.1, 0.1],
            "prior must have one value for each of the 3 classes, got 2",
        ),
        (
            [0.1, 1.0, 0.1],
            r"prior must be in \(0, 1\), got 1.0",
        ),
    ],
)
def test_prior_out_of_range_is_refused(name, args, prior, message):
    with pytest.raises(ValueError, match=message):
        build(name, args).bias(prior, NUM_CLASSES)
