"""A training step waits for the GPU once, to learn the number of positives.

Fake tensors show it without a GPU: they have a device and a shape but no values, and an operation
that needs a value raises. The backward pass needs a real GPU.
"""

import traceback
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode, ShapeEnv
from torch.utils._python_dispatch import TorchDispatchMode

import focal_det
from focal_det.registry import CLS_LOSS_REGISTRY, NORMALIZER_REGISTRY
from tests.conftest import make_batch

OURS = str(Path(focal_det.__file__).parent)
SIZES = (16, 8, 4, 2, 1)


class RecordShapesFromValues(TorchDispatchMode):
    """Collects the operations of focal_det whose output has a shape that only the device knows."""

    def __init__(self):
        super().__init__()
        self.names = []

    @staticmethod
    def is_ours():
        """Whether focal_det itself asked for it: torchvision's IoU losses index by masks."""
        for frame in reversed(traceback.extract_stack()):
            if frame.filename.startswith(OURS):
                return True
            if any(f"/{x}/" in frame.filename for x in ("torchvision", "detectron2", "fvcore")):
                return False
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        indices = args[1] if name in ("index", "index_put", "index_put_") else []
        by_mask = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in indices)
        if (
            by_mask or name in ("nonzero", "masked_select", "unique", "_unique2")
        ) and self.is_ours():
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def step(make_cfg, monkeypatch):
    """A function that makes labels and losses on a pretended GPU; returns what it waited for."""
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr("focal_det.losses.kernels._can_launch", lambda: True)

    def run(*overrides, iteration=None):
        model = build_model(
            make_cfg("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "giou", *overrides)
        ).train()
        model._is_first_step = False  # which also computes the loss of the prior
        env = ShapeEnv(allow_scalar_outputs=False, allow_dynamic_output_shape_ops=True)
        with FakeTensorMode(shape_env=env, allow_non_fake_inputs=True) as mode:
            for module in model.modules():
                for name, buffer in module.named_buffers(recurse=False):
                    module._buffers[name] = mode.from_tensor(buffer).cuda()
            numbers = [9 * size * size for size in SIZES]
            anchors = [Boxes(torch.empty(n, 4, device="cuda")) for n in numbers]
            logits = [
                torch.empty(2, n, model.cls_loss.num_outputs(5), device="cuda", requires_grad=True)
                for n in numbers
            ]
            deltas = [torch.empty(2, n, 4, device="cuda", requires_grad=True) for n in numbers]
            gt = [make_instances(3), make_instances(0)]
            # Without one, nothing is recorded: the number of positives, which a storage wants, is
            # known to the real step by then.
            storage = nullcontext() if iteration is None else EventStorage(iteration)
            with RecordShapesFromValues() as waits, storage:
                without_anchor = []
                labels, boxes = model.label_anchors(anchors, gt, without_anchor)
                losses = model.losses(anchors, logits, labels, deltas, boxes)
            assert {x.device.type for x in without_anchor} == {"cpu"} and losses[
                "loss_cls"
            ].device.type == "cuda"
        return waits.names

    return run


def make_instances(num_boxes):
    boxes, classes = (
        torch.empty(num_boxes, 4, device="cuda"),
        torch.empty(num_boxes, dtype=torch.int64, device="cuda"),
    )
    return Instances((128, 128), gt_boxes=Boxes(boxes), gt_classes=classes)


@pytest.mark.parametrize("name", sorted({name for name, _ in CLS_LOSS_REGISTRY} - {"OHEMLoss"}))
def test_a_step_waits_once_with_every_loss_but_mining(step, name):
    assert step("MODEL.FOCAL_DET.CLS_LOSS.NAME", name) == ["nonzero"]


def test_telemetry_waits_at_its_iterations_only(step, monkeypatch):
    monkeypatch.setattr("focal_det.modeling.retinanet.put_scalar", lambda *_: None)
    assert step("MODEL.FOCAL_DET.TELEMETRY_PERIOD", 20, iteration=18) == ["nonzero"]
    assert step("MODEL.FOCAL_DET.TELEMETRY_PERIOD", 0, iteration=19) == ["nonzero"]
    with pytest.raises((DataDependentOutputException, GuardOnDataDependentSymNode)):
        step("MODEL.FOCAL_DET.TELEMETRY_PERIOD", 20, iteration=19)


def test_mining_waits_for_the_hardest_anchors(step):
    with pytest.raises((DataDependentOutputException, GuardOnDataDependentSymNode)):
        step("MODEL.FOCAL_DET.CLS_LOSS.NAME", "OHEMLoss")


@pytest.mark.parametrize("name", [k for k, x in NORMALIZER_REGISTRY if not x.of_samples])
def test_a_step_waits_once_with_every_normalizer(step, name):
    assert step("MODEL.FOCAL_DET.NORMALIZER.NAME", name) == ["nonzero"]


@pytest.mark.parametrize("name", ["diou", "ciou"])
def test_a_step_waits_once_with_every_iou_loss(step, name):
    assert step("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", name) == ["nonzero"]


def test_smooth_l1_waits_in_detectron2s_box_transform(step):
    with pytest.raises(DataDependentOutputException) as error:
        step("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "smooth_l1")
    assert any("box_regression" in str(entry.path) for entry in error.traceback)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_a_step_waits_once(make_cfg):
    model = build_model(
        make_cfg("MODEL.RETINANET.BBOX_REG_LOSS_TYPE", "giou", "MODEL.DEVICE", "cuda")
    ).train()
    batch = make_batch([[16, 16, 52, 52]], [])
    model(batch)  # the first step also computes the loss of the prior, and Triton compiles
    features = [torch.randn(2, 32, size, size, device="cuda") for size in SIZES]
    gt, anchors = [x["instances"].to("cuda") for x in batch], model.anchor_generator(features)
    logits = [torch.randn(2, len(x), 5, device="cuda", requires_grad=True) for x in anchors]
    deltas = [torch.randn(2, len(x), 4, device="cuda", requires_grad=True) for x in anchors]
    torch.cuda.set_sync_debug_mode("error")
    try:
        labels, boxes = model.label_anchors(anchors, gt, [])
        torch.cuda.set_sync_debug_mode("warn")
        with pytest.warns(UserWarning) as warnings:
            sum(model.losses(anchors, logits, labels, deltas, boxes).values()).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchroniz" in str(x.message) for x in warnings) == 1
