"""FocalRetinaNet neither computes nor copies twice: the layout of images, and the anchors."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.retinanet import permute_to_N_HWA_K
from torch._subclasses.fake_tensor import FakeTensorMode

from focal_det.modeling.memory_format import to_fast_layout
from tests.conftest import make_batch


@pytest.fixture
def head_outputs(make_cfg, batch):
    """Logits and deltas of all levels, as the head gives them to the model."""
    model, outputs = build_model(make_cfg()).eval(), []
    model.head.register_forward_hook(
        lambda module, inputs, output: outputs.extend(x for kind in output for x in kind)
    )
    with torch.no_grad():
        model(batch)
    return outputs


def test_levels_are_permuted_without_a_copy(head_outputs):
    assert len(head_outputs) == 10
    for x in head_outputs:
        num_values = x.shape[1] // 9
        assert permute_to_N_HWA_K(x, num_values).data_ptr() == x.data_ptr()
    assert (
        permute_to_N_HWA_K(head_outputs[0].contiguous(), 5).data_ptr() != head_outputs[0].data_ptr()
    )


def test_gpu_layout_changes_in_mixed_precision_only():
    assert to_fast_layout(torch.empty(2, 3, 8, 8)).is_contiguous(memory_format=torch.channels_last)
    with FakeTensorMode():
        images = torch.empty(2, 3, 8, 8, device="cuda")
        assert to_fast_layout(images) is images
        torch.set_autocast_enabled("cuda", True)
        try:
            assert to_fast_layout(images).is_contiguous(memory_format=torch.channels_last)
        finally:
            torch.set_autocast_enabled("cuda", False)


def test_anchors_are_made_again_for_another_size_only(make_cfg):
    model = build_model(make_cfg()).eval()
    calls = []
    model.anchor_generator.register_forward_hook(lambda *args: calls.append(args))

    def detect(size):
        with torch.no_grad():
            model(make_batch([], size=size))
        return [x.tensor for x in model._anchors[1]]

    first = detect(128)
    assert all(a is b for a, b in zip(first, detect(128))) and len(calls) == 1
    assert len(detect(160)[0]) > len(first[0]) and len(calls) == 2
    model.anchor_generator = build_model(
        make_cfg("MODEL.ANCHOR_GENERATOR.OFFSET", 0.5)
    ).anchor_generator
    assert not torch.equal(detect(128)[0], first[0])


def test_head_with_group_norm_is_built(make_cfg):
    """Detectron2 0.6 first makes a GroupNorm of a single channel, which torch refuses."""
    model = build_model(make_cfg("MODEL.RETINANET.NORM", "GN"))
    norm = model.head.cls_subnet[1]
    assert isinstance(norm, torch.nn.GroupNorm)
    assert (norm.num_groups, norm.num_channels) == (32, 32)
