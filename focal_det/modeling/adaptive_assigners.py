"""Assigners whose threshold or choice of anchors adapts to each box.

Ties are broken by order: the first anchor, or the first box.

Shapes: M boxes in an image, m of them in a step, R anchors (all levels), K classes.
"""

from collections.abc import Callable, Sequence
from typing import Optional

import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from torch import Tensor

from .assigners import Assigner, Assignment, make_empty_assignment

_MAX_PAIRS = 2**22  # pairs of a box and an anchor in a step, 4 bytes per number
# Overlap of an anchor that no box takes. Not 0: with beta 0, a taken anchor may have an IoU of 0.
_NOT_TAKEN = -1.0
# Candidates whose IoUs are all the same reach their own mean, whichever way it is rounded.
_ROUNDING = 1e-6

# Takes the indices of m boxes; returns (m, R) overlaps, which settle conflicts between boxes, and
# (m, R) bool, the anchors that each box claims.
FindPositives = Callable[[Tensor], tuple[Tensor, Tensor]]


class ATSSAssigner(Assigner):
    """Adaptive training sample selection, algorithm 1 of arXiv 1912.02424.

    Candidates of a box are the anchors whose centers are nearest to its own, on each level. Those
    with an IoU of at least mean + standard deviation of the candidates' IoUs, and with their
    center inside the box, are positive. All others are negative; none is ignored.

    The paper's gain comes with one anchor per cell, GIoU loss, GroupNorm and a branch that
    predicts the quality of a box.

    Args:
        num_classes: K.
        anchors_per_cell: A, at each position of a level.
        topk: cells of each level whose anchors are candidates, >= 1; the paper's k.
    """

    def __init__(self, *, num_classes: int, anchors_per_cell: int, topk: int = 9) -> None:
        _check_count("topk", topk)
        _check_count("anchors_per_cell", anchors_per_cell)
        self.num_classes = num_classes
        self.anchors_per_cell = anchors_per_cell
        self.topk = topk

    def assign(
        self,
        anchors: Sequence[Boxes],
        gt_instances: Instances,
        predictions: Optional[Instances] = None,
    ) -> Assignment:
        gt_boxes = gt_instances.gt_boxes
        all_anchors = Boxes.cat(anchors)

        def find_positives(idxs: Tensor) -> tuple[Tensor, Tensor]:
            boxes = gt_boxes[idxs]
            iou = pairwise_iou(boxes, all_anchors)
            is_candidate = self._find_candidates(anchors, boxes)
            thresh = _add_mean_and_std(iou, is_candidate)
            is_above = iou >= thresh - _ROUNDING
            is_positive = is_candidate & is_above & _contain_centers(boxes, all_anchors)
            # Nothing can be learned about a box without any overlap.
            return iou, is_positive & (iou > 0)

        return _assign(all_anchors, gt_instances, self.num_classes, find_positives)

    def _find_candidates(self, anchors: Sequence[Boxes], boxes: Boxes) -> Tensor:
        """(m, R) bool."""
        masks = []
        for level in anchors:
            offsets = boxes.get_centers()[:, None] - level.get_centers()
            count = min(self.topk * self.anchors_per_cell, len(level))
            masks.append(take_largest(-offsets.square().sum(dim=2), count))
        return torch.cat(masks, dim=1)


class TaskAlignedAssigner(Assigner):
    """Task-aligned learning, section 3.2 of arXiv 2108.07755.

    The alignment of an anchor with a box is score^alpha * IoU^beta, from what the detector predicts
    for the class of the box. The anchors with the best alignment are positive if their centers are
    inside the box, as in the authors' code; all others are negative. The authors label by ATSS in
    the first epochs; this class does not.

    The paper's normalized alignment is not part of it: a quality loss (`QualityFocalLoss`,
    `VarifocalLoss`) takes the IoU of the predicted box.

    Args:
        num_classes: K.
        topk: positive anchors of a box, at most, >= 1; the paper's m.
        alpha, beta: exponents, >= 0.
    """

    needs_predictions = True

    def __init__(
        self, *, num_classes: int, topk: int = 13, alpha: float = 1.0, beta: float = 6.0
    ) -> None:
        _check_count("topk", topk)
        for name, value in (("alpha", alpha), ("beta", beta)):
            if not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        self.num_classes = num_classes
        self.topk = topk
        self.alpha = alpha
        self.beta = beta

    def assign(
        self,
        anchors: Sequence[Boxes],
        gt_instances: Instances,
        predictions: Optional[Instances] = None,
    ) -> Assignment:
        if predictions is None:
            raise ValueError("TaskAlignedAssigner needs the predictions of the detector")
        pred_boxes = predictions.pred_boxes
        scores = predictions.scores
        gt_boxes = gt_instances.gt_boxes
        all_anchors = Boxes.cat(anchors)

        def find_positives(idxs: Tensor) -> tuple[Tensor, Tensor]:
            boxes = gt_boxes[idxs]
            iou = pairwise_iou(boxes, pred_boxes)
            scores_of_class = scores.t().index_select(0, gt_instances.gt_classes[idxs])
            alignment = scores_of_class.pow(self.alpha) * iou.pow(self.beta)
            is_best = take_largest(alignment, min(self.topk, len(all_anchors)))
            # An anchor without any alignment is not among the best, however few they are.
            is_positive = is_best & (alignment > 0) & _contain_centers(boxes, all_anchors)
            return iou, is_positive

        return _assign(all_anchors, gt_instances, self.num_classes, find_positives)


def take_largest(values: Tensor, count: int) -> Tensor:
    """(m, R) bool: the `count` largest values of each row, of equals the first.

    Args:
        values: (m, R) without NaN.
        count: from 1 to R.
    """
    smallest = values.topk(count, dim=1).values[:, -1:]
    is_larger = values > smallest
    is_equal = values == smallest
    num_left = count - is_larger.sum(dim=1, keepdim=True)
    return is_larger | (is_equal & (is_equal.cumsum(dim=1) <= num_left))


def _assign(
    anchors: Boxes, gt_instances: Instances, num_classes: int, find_positives: FindPositives
) -> Assignment:
    """Give each anchor the box that takes it with the largest overlap, of equals the first.

    A few boxes at a time, so that memory does not grow with their number.
    """
    gt_boxes = gt_instances.gt_boxes.tensor
    gt_classes = gt_instances.gt_classes
    if len(gt_boxes) == 0:
        return make_empty_assignment(gt_classes, len(anchors), num_classes)
    max_overlap = gt_boxes.new_full((len(anchors),), _NOT_TAKEN)
    matched_idxs = torch.zeros_like(max_overlap, dtype=torch.int64)
    without_anchor = []
    num_boxes = max(1, _MAX_PAIRS // len(anchors))
    for idxs in torch.arange(len(gt_boxes), device=gt_boxes.device).split(num_boxes):
        overlap, is_positive = find_positives(idxs)
        # Of the anchors themselves: predictions may be anywhere.
        iou = pairwise_iou(gt_instances.gt_boxes[idxs], anchors)
        without_anchor.append((iou == 0).all(dim=1))
        overlap, first = overlap.masked_fill(~is_positive, _NOT_TAKEN).max(dim=0)
        matched_idxs = torch.where(overlap > max_overlap, idxs[first], matched_idxs)
        max_overlap = torch.maximum(overlap, max_overlap)
    gt_labels = gt_classes.index_select(0, matched_idxs)
    return Assignment(
        gt_labels=gt_labels.masked_fill(max_overlap == _NOT_TAKEN, num_classes),
        matched_idxs=matched_idxs,
        without_anchor=torch.cat(without_anchor),
    )


def _contain_centers(boxes: Boxes, anchors: Boxes) -> Tensor:
    """(m, R) bool: whether the center of an anchor is inside a box."""
    centers = anchors.get_centers()
    top_left = boxes.tensor[:, None, :2]
    bottom_right = boxes.tensor[:, None, 2:]
    is_inside: Tensor = (centers > top_left) & (centers < bottom_right)
    return is_inside.all(dim=2)


def _add_mean_and_std(values: Tensor, mask: Tensor) -> Tensor:
    """(m, 1) mean plus standard deviation of the (m, R) values where the mask is set."""
    count = mask.sum(dim=1, keepdim=True)
    mean = (values * mask).sum(dim=1, keepdim=True) / count.clamp(min=1)
    squares = ((values - mean) * mask).square().sum(dim=1, keepdim=True)
    return mean + (squares / (count - 1).clamp(min=1)).sqrt()


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")
