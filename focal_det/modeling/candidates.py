"""From predictions at anchors to detections."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor


def decode_predictions(
    scores: Tensor, deltas: Tensor, anchors: Boxes, box2box_transform: Box2BoxTransform
) -> list[Instances]:
    """Per image, `pred_boxes` of all R anchors, not clipped, and `scores` (R, K).

    Args:
        scores: (N, R, K) in [0, 1].
        deltas: (N, R, 4).
        anchors: R of them.
        box2box_transform: decodes deltas.
    """
    predictions = []
    for scores_of_image, deltas_of_image in zip(scores, deltas):
        boxes = box2box_transform.apply_deltas(deltas_of_image, anchors.tensor)
        predictions.append(Instances((0, 0), pred_boxes=Boxes(boxes), scores=scores_of_image))
    return predictions


def select_candidates(
    scores: Tensor, score_thresh: float, max_candidates: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The best pairs of an anchor and a class whose scores are above a threshold.

    The T best pairs belong to the T anchors whose best class scores highest, so the anchors are
    first sorted by their best score, and then only the pairs of the first T.

    Args:
        scores: (Ri, K) in [0, 1].
        score_thresh: in [0, 1).
        max_candidates: upper bound of T.

    Returns:
        (T,) int64 indices of anchors, (T,) int64 classes and (T,) scores, by falling score.
    """
    # Sorted and cut, as the k of topk would become a constant of a traced model.
    best_anchors = scores.amax(dim=1).argsort(descending=True)[:max_candidates]
    scores = scores[best_anchors]
    ranks, class_idxs = torch.nonzero(scores > score_thresh).unbind(dim=1)
    candidates, order = scores[ranks, class_idxs].sort(descending=True)
    candidates = candidates[:max_candidates]
    order = order[:max_candidates]
    return best_anchors[ranks[order]], class_idxs[order], candidates


def postprocess(
    results: Sequence[Instances], batched_inputs: Sequence[Mapping[str, Any]]
) -> list[dict[str, Instances]]:
    """Detections in the sizes that the inputs ask for, or else in those of the network's images.

    Args:
        results: per image.
        batched_inputs: may have "height" and "width", in pixels.
    """
    processed = []
    for result, batch_item in zip(results, batched_inputs):
        height = batch_item.get("height", result.image_size[0])
        width = batch_item.get("width", result.image_size[1])
        processed.append({"instances": detector_postprocess(result, height, width)})
    return processed
