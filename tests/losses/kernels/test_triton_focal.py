"""The Triton kernels against float64, the plain path and each other.

Where a GPU is present the tests run on it. Everywhere, one test runs all others in a process of
its own in Triton's interpreter, on the CPU, and another compiles the kernels for a GPU that need
not be there.
"""

import importlib
import itertools
import os
import re
import warnings
from functools import lru_cache

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from focal_det.losses import FocalLoss, FocalStarLoss, kernels
from focal_det.losses.per_anchor import get_sides
from focal_det.losses.targets import DenseTargets
from tests.conftest import ROOT, run_python
from tests.losses.cases import CASES

triton = pytest.importorskip("triton", reason="Triton is not installed")
triton_focal = importlib.import_module("focal_det.losses.kernels.triton_focal")

VERSION = tuple(int(x) for x in triton.__version__.split(".")[:2])
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# What a dtype adds to the error of a gradient: a part of its value, and a step of small numbers.
# The interpreter cuts bfloat16 off.
ROUNDING = {
    torch.float32: 0.0,
    torch.float16: 2**-11,
    torch.bfloat16: 2**-7 if INTERPRETED else 2**-8,
}
STEP = {torch.float32: 0.0, torch.float16: 2**-25, torch.bfloat16: 0.0}
ALPHAS = (-1, 0.25)
FORMS = [
    *({"gamma": gamma} for gamma in (0, 0.1, 0.5, 1, 1.5, 2, 5)),
    *({"gamma": gamma, "beta": beta} for gamma, beta in ((1, 0), (2, 1), (4, 0), (0.5, -1.5))),
]
# Anchors and classes: on both sides of a block of 2048, vectors of every length, anchors that begin
# within a vector.
SIZES = [
    (2047, 1),
    (2048, 1),
    (2050, 1),
    (683, 3),
    (1024, 3),
    (420, 5),
    (350, 6),
    (171, 12),
    (52, 80),
    (50, 81),
    (52, 81),
    (5, 1203),
]

on_device = pytest.mark.skipif(
    not INTERPRETED and not torch.cuda.is_available(),
    reason="no CUDA device; test_all_pass_in_the_interpreter runs this test on the CPU",
)
once = pytest.mark.skipif(INTERPRETED, reason="runs beside the interpreter, not in it")
every_form = pytest.mark.parametrize(
    "form", FORMS, ids=lambda form: ",".join(f"{k}={v}" for k, v in form.items())
)


def make_scene(num_images, num_anchors, num_classes, dtype=torch.float32, size=8.0):
    """Logits (N, R, K) in [-size, size] and labels (N, R) of every kind."""
    logits = ((torch.rand(num_images, num_anchors, num_classes) * 2 - 1) * size).to(dtype)
    return logits, torch.randint(-1, num_classes + 1, (num_images, num_anchors))


def run(logits, labels, form, alpha=0.25, with_grad=True):
    pos_weight, neg_weight = get_sides(alpha)
    kernel = (
        triton_focal.focal_star_sums_and_grad
        if "beta" in form
        else triton_focal.focal_sums_and_grad
    )
    weights = {"pos_weight": pos_weight, "neg_weight": neg_weight}
    sums, grad = kernel(
        logits.to(DEVICE), labels.to(DEVICE), **weights, **form, with_grad=with_grad
    )
    return sums.cpu(), grad if grad is None else grad.cpu()


def differentiate(loss, logits):
    logits = logits.double().requires_grad_()
    sums = loss(logits)
    return sums.detach(), torch.autograd.grad(sums.sum(), logits)[0]


def compute_by_formula(logits, labels, form, alpha):
    """Sums and gradient of the tests' own reference, in float64."""
    reference = CASES["FocalStarLoss" if "beta" in form else "FocalLoss"].reference(
        alpha=alpha, **form
    )
    targets = DenseTargets.build(labels, torch.zeros(*labels.shape, 4), logits.shape[2])
    return differentiate(lambda x: reference(x, targets), logits)


def compute_plain(logits, labels, form, alpha):
    """Sums and gradient of the plain path, in float64."""
    loss = (FocalStarLoss if "beta" in form else FocalLoss)(alpha=alpha, **form)
    return differentiate(lambda x: loss.per_anchor(x, labels, None).sum(dim=1), logits)


def assert_close(got, want, rounding=0.0, step=0.0):
    """Within a relative 1e-5 above 1e-30 and 1e-30 below, beside the rounding to a dtype."""
    error = (got.double() - want).abs()
    allowed = torch.where(want.abs() > 1e-30, (1e-5 + rounding) * want.abs(), 1e-30) + step
    worst = (error - allowed).argmax()
    assert (error <= allowed).all(), f"{got.flatten()[worst]} is not {want.flatten()[worst]}"


def assert_equals(got, want, dtype=torch.float32):
    (sums, grad), (want_sums, want_grad) = got, want
    assert sums.dtype == torch.float32 and grad.dtype == dtype and grad.is_contiguous()
    assert_close(sums, want_sums)
    assert_close(grad, want_grad, ROUNDING[dtype], STEP[dtype])


@every_form
@pytest.mark.parametrize("alpha", ALPHAS)
@on_device
def test_value_and_gradient_equal_the_reference(form, alpha):
    sizes = ((61, 1), (701, 3), (43, 80))
    # The interpreter takes 15 ms a block, so there each dtype has a size; all meet on a GPU.
    pairs = zip(DTYPES, sizes) if INTERPRETED else itertools.product(DTYPES, sizes)
    for dtype, (num_anchors, num_classes) in pairs:
        logits, labels = make_scene(2, num_anchors, num_classes, dtype)
        assert_equals(
            run(logits, labels, form, alpha),
            compute_by_formula(logits, labels, form, alpha),
            dtype,
        )


@every_form
@on_device
def test_each_single_term_equals_the_reference(form):
    # One term an image, so that no large one hides a small one.
    logits = torch.cat(
        [
            torch.arange(-69.0, 70, 12 if INTERPRETED else 6),
            torch.tensor([-1.01, -0.03, -1e-4, 0.0, 1e-4, 0.07, 0.93]),
        ]
    )
    for label in (0, 1):
        x, labels = logits[:, None, None], torch.full((len(logits), 1), label)
        assert_equals(run(x, labels, form), compute_by_formula(x, labels, form, 0.25))


@every_form
@on_device
def test_saturated_logits_equal_the_plain_path(form):
    values = torch.tensor([-1e4, -500.0, -90.0, 0.0, 90.0, 500.0, 1e4])
    for dtype in DTYPES:
        logits = torch.cartesian_prod(values, values)[None].to(dtype)
        labels = torch.arange(49)[None] % 4 - 1
        got = run(logits, labels, form)
        assert got[0].isfinite().all() and got[1].isfinite().all()
        assert_equals(got, compute_plain(logits, labels, form, 0.25), dtype)


@pytest.mark.parametrize(("num_anchors", "num_classes"), SIZES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@on_device
def test_every_size_equals_the_plain_path(num_anchors, num_classes, dtype):
    logits, labels = make_scene(2, num_anchors, num_classes, dtype)
    assert_equals(
        run(logits, labels, {"gamma": 2}), compute_plain(logits, labels, {"gamma": 2}, 0.25), dtype
    )


@pytest.mark.parametrize("num_classes", [5, 80])
@on_device
def test_the_one_anchor_with_a_label_is_found(num_classes):
    # Every label at every anchor alone: the neighbours within a vector stay ignored.
    num_anchors = num_classes + 2
    logits, _ = make_scene(1, num_anchors, num_classes)
    for anchor in range(0, num_anchors, 1 if num_classes < 10 else 13):
        for label in (0, num_classes // 2, num_classes - 1, num_classes):
            labels = torch.full((1, num_anchors), -1)
            labels[0, anchor] = label
            assert_equals(
                run(logits, labels, {"gamma": 2}), compute_plain(logits, labels, {"gamma": 2}, 0.25)
            )


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (0, 0, 1)])
@on_device
def test_nothing_sums_to_zero(shape):
    sums, grad = run(torch.zeros(shape), torch.zeros(shape[:2], dtype=torch.int64), {"gamma": 2})
    assert sums.tolist() == [0.0] * shape[0] and grad.shape == shape


@pytest.mark.parametrize("num_classes", [3, 81])
@every_form
@on_device
def test_ignored_anchors_count_nothing(form, num_classes):
    logits, labels = make_scene(2, 30, num_classes)
    want_sums, want_grad = run(logits, labels, form)
    ignored = labels < 0
    logits[ignored] = torch.tensor([float("nan"), float("inf"), -float("inf"), 1e4]).repeat(
        num_classes
    )[:num_classes]
    sums, grad = run(logits, labels, form)
    assert (
        torch.equal(sums, want_sums) and torch.equal(grad, want_grad) and (grad[ignored] == 0).all()
    )
    sums, grad = run(logits, torch.full_like(labels, -1), form)
    assert not sums.any() and not grad.any()


@on_device
def test_a_logit_that_is_not_a_number_shows():
    logits, labels = make_scene(3, 30, 3)
    labels[1, 7], logits[1, 7, 1] = 3, float("nan")
    sums, grad = run(logits, labels, {"gamma": 2})
    assert (
        sums.isnan().tolist() == [False, True, False]
        and grad.isnan().sum() == 1
        and grad[1, 7, 1].isnan()
    )


@on_device
def test_labels_may_be_a_slice():
    logits, _ = make_scene(3, 40, 5)
    many = torch.randint(-1, 6, (3, 100)).to(DEVICE)
    want = run(logits, many[:, 33:73].clone(), {"gamma": 2})
    for labels in (many[:, 33:73], many.t().contiguous().t()[:, 33:73]):
        assert not labels.is_contiguous()
        assert all(map(torch.equal, run(logits, labels, {"gamma": 2}), want))


@pytest.mark.parametrize(
    ("num_classes", "dtype"), [(3, torch.float32), (80, torch.float16), (80, torch.bfloat16)]
)
@on_device
def test_logits_may_have_any_strides(num_classes, dtype):
    logits, labels = make_scene(3, 2 * 5 * 7, num_classes, dtype)
    want = run(logits, labels, {"gamma": 1.5})
    logits = logits.to(DEVICE)
    # The permutation of Detectron2, as a view of a channels-last output of a head with two anchors
    # a cell.
    head = logits.view(3, 5, 7, 2 * num_classes).permute(0, 3, 1, 2)
    view = head.view(3, 2, num_classes, 5, 7).permute(0, 3, 4, 1, 2).reshape(3, -1, num_classes)
    assert (
        head.is_contiguous(memory_format=torch.channels_last)
        and view.data_ptr() == logits.data_ptr()
    )
    apart = torch.zeros(3, 101, num_classes, dtype=dtype, device=DEVICE)[:, 17:87]
    apart.copy_(logits)
    padded = torch.nn.functional.pad(logits, (4, 4))[..., 4:-4]
    by_class = logits.transpose(1, 2).contiguous().transpose(1, 2)
    for same in (view, apart, padded, by_class, logits.flip(0).flip(0)):
        assert all(map(torch.equal, run(same, labels, {"gamma": 1.5}), want))
    same = logits[:1].expand(3, -1, -1)
    sums, _ = run(same, labels[:1].expand(3, -1), {"gamma": 1.5})
    assert torch.equal(sums, want[0][:1].expand(3))


@on_device
def test_images_may_be_more_than_two_to_the_31_logits_apart():
    stride = 2**31 + 16
    logits, labels = make_scene(2, 30, 80, torch.bfloat16)
    try:
        far = torch.empty(stride + 30 * 80, dtype=torch.bfloat16, device=DEVICE)
    except (RuntimeError, MemoryError):
        pytest.skip("no 4.3 GB of memory")
    far = far.as_strided((2, 30, 80), (stride, 80, 1)).copy_(logits)
    assert all(map(torch.equal, run(far, labels, {"gamma": 2}), run(logits, labels, {"gamma": 2})))


@every_form
@on_device
def test_the_sums_without_the_gradient_are_the_same(form):
    logits, labels = make_scene(2, 70, 80)
    sums, grad = run(logits, labels, form, with_grad=False)
    assert grad is None and torch.equal(sums, run(logits, labels, form)[0])


@on_device
def test_the_same_call_gives_the_same_bits():
    logits, labels = make_scene(2, 3000, 80 if DEVICE == "cuda" else 3)
    kept = logits.clone(), labels.clone()
    first = run(logits, labels, {"gamma": 1.5})
    for _ in range(3):
        assert all(map(torch.equal, run(logits, labels, {"gamma": 1.5}), first))
    assert torch.equal(logits, kept[0]) and torch.equal(labels, kept[1])


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (
            torch.zeros(2, 4, 3).double(),
            torch.zeros(2, 4).long(),
            "logits must be float32, float16 or bfloat16, got torch.float64",
        ),
        (
            torch.zeros(4, 3),
            torch.zeros(4).long(),
            r"logits must have shape \(N, R, K\), got \(4, 3\)",
        ),
        (
            torch.zeros(2, 4, 3),
            torch.zeros(2, 5).long(),
            r"labels must have shape \(2, 4\), got \(2, 5\)",
        ),
        (
            torch.zeros(2, 4, 3),
            torch.zeros(2, 4),
            "labels must be int64 on cpu, got torch.float32 on cpu",
        ),
    ],
)
def test_arguments_that_do_not_fit_are_refused(logits, labels, message):
    with pytest.raises(ValueError, match=message):
        triton_focal.focal_sums_and_grad(
            logits, labels, pos_weight=1.0, neg_weight=1.0, gamma=2.0, with_grad=True
        )


@once
def test_without_triton_only_this_module_fails():
    code = (
        "import sys; sys.modules['triton'] = None\n"
        "import focal_det.losses\n"
        "try:\n    import focal_det.losses.kernels.triton_focal\n"
        "except ImportError:\n    print('refused')"
    )
    assert "refused" in run_python("-c", code, cwd=ROOT)[1]


@pytest.mark.slow
@once
@pytest.mark.skipif(
    VERSION < (3, 2), reason="the interpreter of older Triton does not write CPU tensors"
)
def test_all_pass_in_the_interpreter():
    command = ("-m", "pytest", "-p", "no:cacheprovider", __file__)
    _, output = run_python(
        *command, cwd=ROOT, env={"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    )
    passed = re.search(r"(\d+) passed", output)
    assert passed and int(passed[1]) > 100, output


def compile_for_gpu(dtype, num_classes, unit, *, with_grad=True, power=2, star=False):
    """PTX of the kernel for an H100, from the types and constants of a call."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    pointer = {torch.float32: "*fp32", torch.float16: "*fp16", torch.bfloat16: "*bf16"}[dtype]
    constants = triton_focal.get_constants(dtype, num_classes, unit, with_grad)
    constants = {**constants, "POWER": power, "STAR": star}
    names = triton_focal._kernel.arg_names
    types = [
        pointer,
        "*i64",
        pointer if with_grad else "*fp32",
        "*fp32",
        "i32",
        "i32",
        "i32",
        *["fp32"] * 4,
    ]
    signature = dict(zip(names, types + ["constexpr"] * len(constants)))
    aligned = {(i,): [["tt.divisibility", 16]] for i in range(4)}
    source = ASTSource(triton_focal._kernel, signature, constants, aligned)
    return triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4}).asm[
        "ptx"
    ]


@pytest.fixture
def compiler(tmp_path, monkeypatch):
    if INTERPRETED or VERSION < (3, 3) or "nvidia" not in triton.backends.backends:
        pytest.skip("needs Triton 3.3 with its NVIDIA compiler, and not its interpreter")
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))


def count(pattern, ptx):
    return len(re.findall(pattern, ptx))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("num_classes", "form"), [(80, {"power": -1}), (81, {"star": True})])
def test_compiled_code_moves_vectors_of_16_bytes(compiler, dtype, num_classes, form):
    ptx = compile_for_gpu(dtype, num_classes, 16, **form)
    vectors = 16 * dtype.itemsize // 16  # of the 16 logits of each thread
    assert (
        count(r"ld\.global\.v4\.b32", ptx) == vectors
        and count(r"st\.global\.v4\.b32", ptx) == vectors
    )
    assert not re.search(r"\b(atom|red)\.", ptx)


@pytest.mark.parametrize(
    ("num_classes", "unit", "power"), [(1, 1, 0), (3, 2, 1), (80, 16, 2), (81, 4, 2), (1203, 1, 0)]
)
def test_every_vector_length_compiles(compiler, num_classes, unit, power):
    for dtype, with_grad in ((torch.float32, False), (torch.bfloat16, True)):
        ptx = compile_for_gpu(dtype, num_classes, unit, with_grad=with_grad, power=power)
        # Labels and logits are each read at most once per logit; beside the gradient one sum is
        # written.
        assert 1 < count(r"ld\.global", ptx) <= 32
        assert (count(r"st\.global", ptx) > 1) == with_grad


@once
@pytest.mark.parametrize("missing", ["compiler", "Python.h"])
def test_without_a_c_compiler_the_plain_path_is_taken(missing, monkeypatch, tmp_path):
    """What Triton builds in C before its first launch, on a machine whose GPU is pretended."""
    driver = pytest.importorskip("triton.backends.nvidia.driver")
    build = importlib.import_module("triton.runtime.build")
    monkeypatch.setattr(driver.CudaDriver, "is_active", staticmethod(lambda: True))
    monkeypatch.setattr(driver, "library_dirs", lambda: [])
    monkeypatch.setattr(triton.runtime, "driver", type(triton.runtime.driver)())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    if missing == "compiler":
        monkeypatch.setenv("CC", str(tmp_path / "cc"))
    else:
        monkeypatch.setattr(build.sysconfig, "get_paths", lambda **_: {"include": str(tmp_path)})
    getattr(build, "_find_compiler", lru_cache(str)).cache_clear()
    kernels._can_launch.cache_clear()
    try:
        with FakeTensorMode(), warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            logits = torch.empty(2, 5, 3, device="cuda")
            labels = torch.empty(2, 5, device="cuda", dtype=torch.int64)
            values = [FocalLoss().per_image(logits, labels) for _ in range(2)]
        assert [x.shape for x in values] == [(2,), (2,)] and not kernels.is_supported(logits)
        (message,) = [str(x.message) for x in caught if "Triton" in str(x.message)]
        assert "needs a C compiler and Python.h" in message and "slower" in message
    finally:
        kernels._can_launch.cache_clear()
        getattr(build, "_find_compiler", lru_cache(str)).cache_clear()
