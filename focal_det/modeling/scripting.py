"""A FocalRetinaNet for TorchScript, as Detectron2's `scripting_with_instances` exports it."""

import copy

import torch
from detectron2.modeling.meta_arch.retinanet import RetinaNet, permute_to_N_HWA_K
from detectron2.structures import Instances
from torch import Tensor, nn


def make_scriptable(model: RetinaNet) -> nn.Module:
    """A twin of a FocalRetinaNet that TorchScript can compile; the model is not changed.

    The twin shares parameters and inference with the model. It lacks the loss and the normalizer,
    which TorchScript cannot compile; the loss's `scores` are traced, which works for any loss.
    """
    cls = type(model)
    twin = copy.copy(model)
    twin.__class__ = type(f"Scriptable{cls.__name__}", (_InferenceOnly, cls), {})
    twin._modules = dict(model._modules)
    del twin.cls_loss, twin.normalizer
    cls_loss = model.cls_loss
    twin.num_outputs = cls_loss.num_outputs(model.num_classes)
    example = model.pixel_mean.new_zeros(1, 2, twin.num_outputs)
    twin.compute_scores = torch.jit.trace(lambda logits: cls_loss.scores(logits), example)
    scriptable: nn.Module = twin
    return scriptable


class _InferenceOnly(RetinaNet):
    """`forward` without postprocessing, which the stock RetinaNet omits in TorchScript, too."""

    # A constant, so that TorchScript leaves out branches for training. It accepts a `Final` without
    # a value, which type checkers refuse.
    training: torch.jit.Final[bool]  # type: ignore[misc]

    def __prepare_scriptable__(self) -> nn.Module:
        return self

    def forward(self, batched_inputs: list[dict[str, Tensor]]) -> list[Instances]:
        images = self.preprocess_image(batched_inputs)
        features = self.extract_features(images.tensor)
        anchors = self.anchor_generator(features)
        pred_logits, pred_anchor_deltas = self.head(features)
        scores = [self.compute_scores(permute_to_N_HWA_K(x, self.num_outputs)) for x in pred_logits]
        deltas = [permute_to_N_HWA_K(x, 4) for x in pred_anchor_deltas]
        results: list[Instances] = []
        for i, image_size in enumerate(images.image_sizes):
            scores_of_image = [x[i] for x in scores]
            deltas_of_image = [x[i] for x in deltas]
            results.append(
                self.inference_single_image(anchors, scores_of_image, deltas_of_image, image_size)
            )
        return results
