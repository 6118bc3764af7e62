"""What `focal-det bench` measures: inputs of a typical size, and for each the calls of ours and of every installed peer."""

import importlib.util
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn import functional as F

from focal_det.losses import focal_loss_from_labels, focal_loss_per_anchor
from focal_det.model_zoo import get_config_file
from focal_det.modeling.assigners import IoUAssigner

from .timing import find_largest_batch

OURS, STOCK = "focal_det", "Detectron2"
COPY = "copy of the logits"  # reads each once and writes as much as the gradient: no loss can take less
_STRIDES = (8, 16, 32, 64, 128)


@dataclass(frozen=True)
class BenchCase:
    """One comparison.

    Attributes:
        name: what is measured, with its sizes.
        contenders: calls by name; `OURS` is among them.
        size: of its input, such as {"anchors": 193374}; "scaling" names what grows from case to case, if anything.
        unit_bytes: bytes of the logits, which memory is told in multiples of; None for bytes.
    """

    name: str
    contenders: Mapping[str, Callable[[], Any]]
    size: Mapping[str, Any] = field(default_factory=dict)
    unit_bytes: Optional[int] = None


def make_loss_cases(device: str, dtype: torch.dtype, quick: bool) -> Iterator[BenchCase]:
    """Loss and gradient from logits and labels: at four gammas, then with more anchors and with more classes."""
    num_anchors = _get_num_anchors(quick)
    for gamma in (2.0, 1.5, 1.0, 0.3):
        yield _make_loss_case(device, dtype, num_anchors, 80, gamma)
    counts, num_classes = (
        ((500, 1000), (10, 20))
        if quick
        else ((12_500, 50_000, 200_000, 400_000), (5, 20, 80, 365, 1203))
    )
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
    logits = (torch.randn(num_anchors, num_classes) - 4.6).to(device, dtype).requires_grad_()
    labels = torch.full((num_anchors,), num_classes)
    chosen = torch.randperm(num_anchors)[:450]
    labels[chosen[:150]], labels[chosen[150:]] = torch.randint(num_classes, (150,)), -1
    labels = labels.to(device)
    losses = {
        OURS: lambda: focal_loss_from_labels(logits, labels, alpha=0.25, gamma=gamma),
        "plain path": lambda: focal_loss_per_anchor(
            logits, labels, pos_weight=0.25, neg_weight=0.75, gamma=gamma
        ).sum(),
    }

    def with_one_hot(function: Callable[..., Tensor]) -> Tensor:
        valid = labels >= 0
        target = F.one_hot(labels[valid], num_classes + 1)[:, :-1].to(logits.dtype)
        return function(logits[valid], target, alpha=0.25, gamma=gamma, reduction="sum")

    losses.update(
        {name: lambda f=function: with_one_hot(f) for name, function in _find_losses().items()}
    )

    def step(loss: Callable[[], Tensor]) -> None:
        torch.autograd.grad(
            loss(), logits
        )  # made and dropped within the call, so that its memory counts

    contenders = {name: lambda loss=loss: step(loss) for name, loss in losses.items()}
    return BenchCase(
        f"loss and gradient: {num_anchors} anchors x {num_classes} classes, gamma {gamma:g}",
        {**contenders, COPY: lambda: logits.detach().clone()},
        {"anchors": num_anchors, "classes": num_classes, "gamma": gamma, "scaling": scaling},
        logits.element_size() * logits.numel(),
    )


def _find_losses() -> dict[str, Callable[..., Tensor]]:
    """Focal losses of the peers that are installed."""
    from fvcore.nn import sigmoid_focal_loss_jit
    from torchvision.ops import sigmoid_focal_loss

    found = {"fvcore": sigmoid_focal_loss_jit, "torchvision": sigmoid_focal_loss}
    if importlib.util.find_spec("kornia"):
        from kornia.losses import binary_focal_loss_with_logits

        found["kornia"] = binary_focal_loss_with_logits
    return found


def make_label_cases(device: str, dtype: torch.dtype, quick: bool) -> Iterator[BenchCase]:
    """Labels of all anchors of an image, for few and for many boxes."""
    size = _get_size(quick)
    anchors = Boxes.cat(_make_anchors(device, size))
    matcher = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True)
    assigner = IoUAssigner(matcher=matcher, num_classes=80)
    stock = type("Stock", (), {"anchor_matcher": matcher, "num_classes": 80})()
    for num_boxes in (5, 50) if quick else (5, 50, 300, 1000):
        gt = _make_instances(num_boxes, size).to(device)
        contenders = {
            OURS: lambda gt=gt: assigner.assign(anchors, gt),
            STOCK: lambda gt=gt: RetinaNet.label_anchors(stock, [anchors], [gt]),
        }
        shape = {"anchors": len(anchors), "boxes": num_boxes}
        yield BenchCase(f"labels: {num_boxes} boxes x {len(anchors)} anchors", contenders, shape)


def make_step_cases(device: str, dtype: torch.dtype, quick: bool) -> Iterator[BenchCase]:
    """A training step of RetinaNet R50-FPN without the optimizer, for few and for many boxes: 16 images on a GPU, 1 on a CPU."""
    models, size = _build_models(device), _get_size(quick)
    num_images = 16 if device == "cuda" and not quick else 1

    def step(model: nn.Module, num_boxes: int, num_images: int) -> None:
        batch = [
            {"image": _make_image(size), "instances": _make_instances(num_boxes, size)}
        ] * num_images
        with EventStorage(), _autocast(device, dtype):
            losses = sum(model.train()(batch).values())
        losses.backward()
        model.zero_grad(set_to_none=True)

    for num_boxes in (5,) if quick else (5, 300):
        contenders = {
            name: lambda m=model, b=num_boxes: step(m, b, num_images)
            for name, model in models.items()
        }
        shape = {"boxes": num_boxes, "images": num_images}
        if device == "cuda" and num_boxes == 5:
            largest = {
                name: find_largest_batch(lambda n, m=model: step(m, 5, n), limit=256)
                for name, model in models.items()
            }
            shape["largest_batch"] = largest
            print(f"largest batch that fits, up to 256 images: {largest}", flush=True)
        yield BenchCase(
            f"training step: R50-FPN, {num_images} x {size[1]} x {size[0]}, {num_boxes} boxes an image",
            contenders,
            shape,
        )


def make_infer_cases(device: str, dtype: torch.dtype, quick: bool) -> Iterator[BenchCase]:
    """From logits to detections where many candidates pass, and all of the detection in an image."""
    models, size = _build_models(device), _get_size(quick)
    torch.manual_seed(0)
    anchors = _make_anchors(device, size)
    logits = [torch.randn(len(x), 80, device=device) - 1 for x in anchors]
    deltas = [torch.randn(len(x), 4, device=device) * 0.1 for x in anchors]
    takes_logits = not hasattr(
        RetinaNet, "forward_inference"
    )  # of Detectron2 0.5, whose method applies the sigmoid itself

    @torch.no_grad()
    def process(model: nn.Module) -> None:
        # Detectron2 works in place, on a copy that takes the place of the head's output.
        inputs = (
            [x.clone() for x in logits]
            if takes_logits and model is models[STOCK]
            else [x.sigmoid() for x in logits]
        )
        model.inference_single_image(anchors, inputs, deltas, size)

    @torch.no_grad()
    def detect(model: nn.Module, image: Tensor = _make_image(size)) -> None:  # noqa: B008
        with _autocast(device, dtype):
            model.eval()([{"image": image}])

    for name, function in (
        ("post-processing, many candidates", process),
        ("detection in an image", detect),
    ):
        contenders = {key: lambda m=model, f=function: f(m) for key, model in models.items()}
        yield BenchCase(f"{name}: R50-FPN, {size[1]} x {size[0]}", contenders)


def _autocast(device: str, dtype: torch.dtype) -> torch.autocast:
    return torch.autocast(device, dtype=dtype, enabled=dtype != torch.float32)


def _build_models(device: str) -> dict[str, nn.Module]:
    """Ours and Detectron2's, with the same weights and 80 classes."""
    models = {}
    for name, architecture in ((OURS, "FocalRetinaNet"), (STOCK, "RetinaNet")):
        cfg = get_cfg()
        cfg.merge_from_file(get_config_file("COCO-Detection/focal_retinanet_R_50_FPN_1x.yaml"))
        cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.DEVICE = architecture, device
        models[name] = build_model(cfg)
    models[STOCK].load_state_dict(models[OURS].state_dict(), strict=False)
    return models


def get_shape(what: str, quick: bool) -> str:
    """Size of a benchmark's main input, for a file name: anchors x classes, or width x height of an image."""
    return (
        f"{_get_num_anchors(quick)}x80"
        if what == "loss"
        else "x".join(map(str, reversed(_get_size(quick))))
    )


def _get_num_anchors(quick: bool) -> int:
    return 2000 if quick else 193_374


def _get_size(quick: bool) -> tuple[int, int]:
    return (128, 160) if quick else (800, 1088)


def _make_image(size: tuple[int, int]) -> Tensor:
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
