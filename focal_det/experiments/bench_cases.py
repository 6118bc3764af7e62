"""The cases of `focal-det bench`: inputs of a typical size, and calls of ours and of the peers."""

import functools
import importlib.util
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Optional

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn import functional as F

from focal_det.losses import focal_loss_from_labels, focal_loss_per_anchor
from focal_det.modeling.assigners import IoUAssigner

from .bench_models import FASTER_RCNN, OURS, RETINANET, STOCK, Detector, build_models
from .records import make_origin
from .timing import find_largest_batch, summarize, time_alternating

# Reads each logit once and writes as much as the gradient: no loss can take less.
COPY = "copy of the logits"
DTYPES = ("float32", "float16", "bfloat16")
MAX_IMAGES = 256  # tried in one batch
_STRIDES = (8, 16, 32, 64, 128)


@dataclass(frozen=True)
class BenchCase:
    """One comparison.

    Attributes:
        name: the measured part, with its sizes.
        contenders: calls by name; `OURS` is among them.
        size: of its input, such as {"anchors": 193374}; "scaling" names the size that grows from
            case to case, if one does.
        unit_bytes: bytes of the logits, the unit of memory; None for bytes.
    """

    name: str
    contenders: Mapping[str, Callable[[], Any]]
    size: Mapping[str, Any] = field(default_factory=dict)
    unit_bytes: Optional[int] = None


def make_benchmark(
    what: str, command: str, *, device: str, dtype: str, rounds: int, quick: bool
) -> dict[str, Any]:
    """The head of a benchmark's json: its origin and its settings, with no "results" yet.

    Args:
        what: a name in `BENCHMARKS`.
        command: the one that was typed.
        device: "cpu" or "cuda".
        dtype: of the logits, or of mixed precision.
        rounds: measured calls of each contender; 1 if `quick`.
        quick: measure small inputs.

    Raises:
        ValueError: rounds below 1, no GPU, or a dtype that the benchmark does not have.
    """
    if rounds < 1:
        raise ValueError(f"--rounds must be >= 1, got {rounds}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda needs a GPU, and torch finds none")
    # The record would claim a dtype that was not measured.
    if what == "labels" and dtype != "float32":
        raise ValueError(f"--dtype {dtype}: labels are computed in float32 only")
    if quick:
        rounds = 1
    return {
        "benchmark": what,
        "shape": _get_shape(what, quick),
        "quick": quick,
        "rounds": rounds,
        "dtype": dtype,
        **make_origin(command, device=device),
        "results": [],
    }


def measure_cases(content: Mapping[str, Any], device: str) -> Iterator[dict[str, Any]]:
    """Measure the cases of a benchmark one by one.

    Args:
        content: of `make_benchmark`.

    Yields:
        "case", its name; its sizes; "contenders", see `summarize`.
    """
    make_cases = BENCHMARKS[content["benchmark"]]
    for case in make_cases(device, getattr(torch, content["dtype"]), content["quick"]):
        timings = time_alternating(
            case.contenders, rounds=content["rounds"], device=device, desc=case.name
        )
        yield {
            "case": case.name,
            **case.size,
            "contenders": summarize(timings, OURS, case.unit_bytes),
        }


def get_file_name(content: Mapping[str, Any]) -> str:
    """Name of a benchmark's files by its conditions, without a suffix."""
    words = [content["benchmark"]]
    if content["quick"]:
        words.append("quick")
    words += [
        content["shape"],
        content["device"],
        f"{content['threads']} threads",
        content["dtype"],
        f"torch {content['versions']['torch']}",
    ]
    return re.sub(r"[^\w.]+", "-", "_".join(words))


def make_loss_cases(device: str, dtype: torch.dtype, quick: bool) -> Iterator[BenchCase]:
    """Loss and gradient at four gammas, then for growing numbers of anchors and of classes."""
    num_anchors = _get_num_anchors(quick)
    for gamma in (2.0, 1.5, 1.0, 0.3):
        yield _make_loss_case(device, dtype, num_anchors, 80, gamma)
    # 1203 are the classes of LVIS, 365 those of Objects365.
    counts: tuple[int, ...] = (12_500, 50_000, 200_000, 400_000)
    num_classes: tuple[int, ...] = (5, 20, 80, 365, 1203)
    if quick:
        counts = (500, 1000)
        num_classes = (10, 20)
    for count in counts:
        yield _make_loss_case(device, dtype, count, 80, 2.0, scaling="anchors")
    for count in num_classes:
        yield _make_loss_case(device, dtype, num_anchors // 5, count, 2.0, scaling="classes")


def _make_loss_case(
    device: str,
    dtype: torch.dtype,
    num_anchors: int,
    num_classes: int,
    gamma: float,
    scaling: str = "",
) -> BenchCase:
    torch.manual_seed(0)
    # Around the logit of the usual prior, 0.01.
    logits = (torch.randn(num_anchors, num_classes) - 4.6).to(device, dtype).requires_grad_()
    labels = _make_labels(num_anchors, num_classes).to(device)

    def step(loss: Callable[..., Tensor]) -> None:
        # The gradient is made and dropped within the call, so that its memory counts.
        torch.autograd.grad(loss(logits, labels, gamma), logits)

    losses = {OURS: _compute_ours, "plain path": _compute_plain, **_find_peers()}
    contenders: dict[str, Callable[[], Any]] = {
        name: functools.partial(step, loss) for name, loss in losses.items()
    }
    contenders[COPY] = lambda: logits.detach().clone()
    return BenchCase(
        f"loss and gradient: {num_anchors} anchors x {num_classes} classes, gamma {gamma:g}",
        contenders,
        {"anchors": num_anchors, "classes": num_classes, "gamma": gamma, "scaling": scaling},
        logits.element_size() * logits.numel(),
    )


def _make_labels(num_anchors: int, num_classes: int) -> Tensor:
    """150 positive anchors and 300 ignored ones among the background."""
    labels = torch.full((num_anchors,), num_classes)
    # Without repeats, so that none is positive and ignored at once.
    chosen = torch.randperm(num_anchors)[:450]
    labels[chosen[:150]] = torch.randint(num_classes, (150,))
    labels[chosen[150:]] = -1
    return labels


def _compute_ours(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    return focal_loss_from_labels(logits, labels, alpha=0.25, gamma=gamma)


def _compute_plain(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    weights = {"pos_weight": 0.25, "neg_weight": 0.75}
    return focal_loss_per_anchor(logits, labels, **weights, gamma=gamma).sum()


def _compute_from_one_hot(
    function: Callable[..., Tensor], logits: Tensor, labels: Tensor, gamma: float
) -> Tensor:
    """A peer's loss, which needs one-hot targets and does not know ignored anchors."""
    # Part of the measured time: whoever uses a peer has to do it in each step.
    valid = labels >= 0
    target = F.one_hot(labels[valid], logits.shape[1] + 1)[:, :-1].to(logits.dtype)
    return function(logits[valid], target, alpha=0.25, gamma=gamma, reduction="sum")


def _find_peers() -> dict[str, Callable[..., Tensor]]:
    """Focal losses of the installed peers."""
    from fvcore.nn import sigmoid_focal_loss_jit
    from torchvision.ops import sigmoid_focal_loss

    found = {"fvcore": sigmoid_focal_loss_jit, "torchvision": sigmoid_focal_loss}
    if importlib.util.find_spec("kornia"):
        from kornia.losses import binary_focal_loss_with_logits

        found["kornia"] = binary_focal_loss_with_logits
    return {
        name: functools.partial(_compute_from_one_hot, function) for name, function in found.items()
    }


def make_label_cases(device: str, dtype: torch.dtype, quick: bool) -> Iterator[BenchCase]:
    """Labels of all anchors of an image, for few and for many boxes."""
    size = _get_size(quick)
    anchors = Boxes.cat(_make_anchors(device, size))
    matcher = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True)
    assigner = IoUAssigner(matcher=matcher, num_classes=80)
    # Detectron2 labels anchors in a method of its model, which reads only these two attributes.
    stock = type("Stock", (), {"anchor_matcher": matcher, "num_classes": 80})()
    counts: tuple[int, ...] = (5, 50, 300, 1000)
    if quick:
        counts = (5, 50)
    for num_boxes in counts:
        gt = _make_instances(num_boxes, size).to(device)
        contenders = {
            OURS: functools.partial(assigner.assign, [anchors], gt),
            STOCK: functools.partial(RetinaNet.label_anchors, stock, [anchors], [gt]),
        }
        shape = {"anchors": len(anchors), "boxes": num_boxes}
        yield BenchCase(f"labels: {num_boxes} boxes x {len(anchors)} anchors", contenders, shape)


def make_step_cases(device: str, dtype: torch.dtype, quick: bool) -> Iterator[BenchCase]:
    """Training steps without the optimizer, of each detector for few and for many boxes.

    There are 16 images on a GPU and 1 on a CPU.
    """
    for detector in (RETINANET, FASTER_RCNN):
        yield from _make_steps_of(detector, device, dtype, quick)


def _make_steps_of(
    detector: Detector, device: str, dtype: torch.dtype, quick: bool
) -> Iterator[BenchCase]:
    models = build_models(detector, device)
    size = _get_size(quick)
    num_images = 16 if device == "cuda" and not quick else 1

    def step(model: nn.Module, num_boxes: int, num_images: int) -> None:
        item = {"image": _make_image(size), "instances": _make_instances(num_boxes, size)}
        with EventStorage(), _autocast(device, dtype):
            losses = sum(model.train()([item] * num_images).values())
        losses.backward()
        model.zero_grad(set_to_none=True)

    counts: tuple[int, ...] = (5, 300)
    if quick:
        counts = (5,)
    for num_boxes in counts:
        shape: dict[str, Any] = {"boxes": num_boxes, "images": num_images}
        if device == "cuda" and num_boxes == 5:
            # Only with few boxes: with many, Detectron2's labels need the most memory.
            shape["largest_batch"] = {
                name: find_largest_batch(functools.partial(step, model, 5), limit=MAX_IMAGES)
                for name, model in models.items()
            }
        contenders = {
            name: functools.partial(step, model, num_boxes, num_images)
            for name, model in models.items()
        }
        sizes = f"{num_images} x {size[1]} x {size[0]}"
        name = f"training step: {detector.title}, {sizes}, {num_boxes} boxes an image"
        yield BenchCase(name, contenders, shape)


def make_infer_cases(device: str, dtype: torch.dtype, quick: bool) -> Iterator[BenchCase]:
    """Post-processing where many candidates pass, and the whole detection in an image."""
    models = build_models(RETINANET, device)
    size = _get_size(quick)
    torch.manual_seed(0)
    anchors = _make_anchors(device, size)
    logits = [torch.randn(len(x), 80, device=device) - 1 for x in anchors]
    deltas = [torch.randn(len(x), 4, device=device) * 0.1 for x in anchors]
    image = _make_image(size)
    # Detectron2 0.5 applies the sigmoid within its method.
    takes_logits = not hasattr(RetinaNet, "forward_inference")

    @torch.no_grad()
    def process(model: RetinaNet) -> None:
        # Detectron2 works in place, so both get a copy and not the head's output itself.
        if takes_logits and model is models[STOCK]:
            inputs = [x.clone() for x in logits]
        else:
            inputs = [x.sigmoid() for x in logits]
        model.inference_single_image(anchors, inputs, deltas, size)

    @torch.no_grad()
    def detect(model: nn.Module) -> None:
        with _autocast(device, dtype):
            model.eval()([{"image": image}])

    parts = {"post-processing, many candidates": process, "detection in an image": detect}
    for name, function in parts.items():
        contenders = {key: functools.partial(function, model) for key, model in models.items()}
        yield BenchCase(f"{name}: {RETINANET.title}, {size[1]} x {size[0]}", contenders)


def _autocast(device: str, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32)


def _get_shape(what: str, quick: bool) -> str:
    """Size of a benchmark's main input: anchors x classes, or width x height of an image."""
    if what == "loss":
        return f"{_get_num_anchors(quick)}x80"
    height, width = _get_size(quick)
    return f"{width}x{height}"


def _get_num_anchors(quick: bool) -> int:
    return 2000 if quick else 193_374


def _get_size(quick: bool) -> tuple[int, int]:
    return (128, 160) if quick else (800, 1088)


def _make_image(size: tuple[int, int]) -> Tensor:
    # Generators of their own, here and below, so that both contenders get the same input.
    return torch.randint(0, 256, (3, *size), generator=torch.Generator().manual_seed(0)).float()


def _make_anchors(device: str, size: tuple[int, int]) -> list[Boxes]:
    """RetinaNet's nine anchors per cell, by level."""
    sizes = [[stride * 4 * 2 ** (i / 3) for i in range(3)] for stride in _STRIDES]
    generator = DefaultAnchorGenerator(
        sizes=sizes, aspect_ratios=[[0.5, 1.0, 2.0]], strides=list(_STRIDES)
    ).to(device)
    return generator(
        [torch.zeros(1, 1, *(-(-x // stride) for x in size), device=device) for stride in _STRIDES]
    )


def _make_instances(num_boxes: int, size: tuple[int, int]) -> Instances:
    """Boxes of 16 to 256 pixels anywhere in the image."""
    generator = torch.Generator().manual_seed(0)
    bottom_right = torch.tensor([size[1], size[0]])
    sides = 16 * 2 ** (4 * torch.rand(num_boxes, 2, generator=generator))
    corner = torch.rand(num_boxes, 2, generator=generator) * (bottom_right - sides).clamp(min=0)
    instances = Instances(size)
    instances.gt_boxes = Boxes(
        torch.cat([corner, torch.minimum(corner + sides, bottom_right)], dim=1)
    )
    instances.gt_classes = torch.randint(80, (num_boxes,), generator=generator)
    return instances


BENCHMARKS = {
    "loss": make_loss_cases,
    "labels": make_label_cases,
    "step": make_step_cases,
    "infer": make_infer_cases,
}
