"""Which box each anchor overlaps most, and which anchors each box overlaps most.

The matrix of all overlaps is never made.

Shapes: M boxes in an image, R anchors (all levels); XYXY in absolute pixels. As columns, both are
(5, ...): x0, y0, x1, y1, area.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Union

import torch
from torch import Tensor
from torch.nn import functional as F

# On a CPU, steps are small enough (below 2**15 numbers) for torch to keep them on one thread: when
# the cores are busy, waking other threads takes far longer than the work.
_BLOCK_SIZE = 64  # consecutive anchors that are compared or skipped together
_MAX_BLOCKS = 500  # in a step
_MAX_BLOCK_TESTS = 16000  # pairs of a box and a block in a step
_MAX_PAIRS = 2**22  # pairs of a box and an anchor in a step on other devices, 16 bytes each

Columns = Union[Tensor, Sequence[Tensor]]  # (5, ...), or five tensors


@dataclass(frozen=True)
class Matches:
    """What Detectron2's Matcher takes from the (M, R) matrix of overlaps.

    Attributes:
        max_iou: (R,) in [0, 1], the largest IoU of each anchor with any box.
        matched_idxs: (R,) int64, the first box with that IoU; for an anchor that overlaps no box,
            the first box that overlaps any anchor.
        is_best_of_box: (R,) bool, whether some box has its largest IoU, above 0, with this anchor.
        max_iou_of_box: (M,) in [0, 1], the largest IoU of each box with any anchor.
    """

    max_iou: Tensor
    matched_idxs: Tensor
    is_best_of_box: Tensor
    max_iou_of_box: Tensor

    @property
    def without_anchor(self) -> Tensor:
        """(M,) bool, the boxes that overlap no anchor."""
        return self.max_iou_of_box == 0


@torch.no_grad()
def match_anchors(anchors: Tensor, boxes: Tensor) -> Matches:
    """Match anchors and boxes, in memory that does not grow with the product of their numbers.

    Every IoU is bit for bit that of Detectron2's `pairwise_iou`, so that thresholds and ties come
    out the same. A CPU skips blocks of anchors that are far from a box, which saves most if
    neighbours in the list are neighbours in the image. Other devices compute all pairs, in steps of
    fixed shapes, so that the CPU never waits for them.

    Args:
        anchors: (R, 4), R >= 1.
        boxes: (M, 4), M >= 1, of the same dtype and device. Boxes and anchors with NaN or an area
            that is not in (0, inf) overlap nothing.
    """
    if anchors.device.type == "cpu":
        return _match_near_pairs(anchors, boxes)
    return _match_all_pairs(anchors, boxes)


def _match_near_pairs(anchors: Tensor, boxes: Tensor) -> Matches:
    """Match on a CPU: box by box, only with the blocks of anchors near it."""
    num_anchors = len(anchors)
    boxes = _to_columns(boxes)
    # Padding has no area, so it overlaps nothing.
    anchors = _to_columns(F.pad(anchors, (0, 0, 0, -num_anchors % _BLOCK_SIZE)))
    anchors = anchors.unflatten(1, (-1, _BLOCK_SIZE))
    per_anchor = _start(anchors)
    max_iou, matched_idxs, is_best_of_box = per_anchor
    max_iou_of_box = torch.zeros_like(boxes[0])
    for i, blocks in enumerate(_find_near_blocks(anchors, boxes)):
        if len(blocks) == 0:
            continue
        steps = blocks.split(_MAX_BLOCKS)
        ious = []
        for step in steps:
            near_anchors = [x.index_select(0, step) for x in anchors]
            ious.append(_compute_iou(near_anchors, boxes[:, i]))
        best = max(x.max() for x in ious)
        if best == 0:
            continue
        max_iou_of_box[i] = best
        for step, iou in zip(steps, ious):
            old_iou, old_idxs, was_best = (x.index_select(0, step) for x in per_anchor)
            # Strictly larger: of boxes with the same IoU, the first keeps the anchor.
            matched_idxs.index_copy_(0, step, old_idxs.masked_fill_(iou > old_iou, i))
            max_iou.index_copy_(0, step, torch.maximum(iou, old_iou))
            is_best_of_box.index_copy_(0, step, was_best.logical_or_(iou == best))
    max_iou, matched_idxs, is_best_of_box = (x.flatten()[:num_anchors] for x in per_anchor)
    return _finish(max_iou, matched_idxs, is_best_of_box, max_iou_of_box)


def _find_near_blocks(anchors: Tensor, boxes: Tensor) -> Iterator[Tensor]:
    """For each box, yield the indices of the blocks of anchors whose hull it overlaps.

    Args:
        anchors: (5, B, _BLOCK_SIZE) columns of B blocks.
        boxes: (5, M) columns.
    """
    top_left = anchors[:2, None].amin(dim=3)
    bottom_right = anchors[2:4, None].amax(dim=3)
    num_boxes = max(1, _MAX_BLOCK_TESTS // anchors.shape[1])
    for step in boxes[:, :, None].split(num_boxes, dim=1):
        is_near = (step[:2] < bottom_right) & (step[2:4] > top_left)
        for row in is_near[0] & is_near[1]:
            yield row.nonzero().squeeze(1)


def _match_all_pairs(anchors: Tensor, boxes: Tensor) -> Matches:
    """Match on other devices: some boxes at a time with all anchors, without synchronizing."""
    anchors = _to_columns(anchors)
    boxes = _to_columns(boxes)
    max_iou, matched_idxs, is_best_of_box = _start(anchors)
    max_iou_of_box = []
    first = 0
    num_boxes = max(1, _MAX_PAIRS // anchors.shape[1])
    for step in boxes[:, :, None].split(num_boxes, dim=1):
        iou = _compute_iou(anchors, step)
        best = iou.amax(dim=1, keepdim=True)
        max_iou_of_box.append(best.squeeze(1))
        # No anchor is the best of a box that overlaps none.
        is_best_of_box |= (iou == best.masked_fill(best == 0, math.inf)).any(dim=0)
        iou, idxs = iou.max(dim=0)  # the first of equals
        matched_idxs = torch.where(iou > max_iou, idxs + first, matched_idxs)
        max_iou = torch.maximum(iou, max_iou)
        first += step.shape[1]
    return _finish(max_iou, matched_idxs, is_best_of_box, torch.cat(max_iou_of_box))


def _to_columns(boxes: Tensor) -> Tensor:
    """(5, n) columns of (n, 4) boxes: x0, y0, x1, y1, area.

    A box whose area is not in (0, inf) becomes inf, inf, -inf, -inf and area 1: every comparison
    finds it empty, and no IoU with it is NaN.
    """
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    is_empty = ~((area > 0) & (area < math.inf))
    columns = torch.cat([boxes.t(), area[None]])
    columns[:2].masked_fill_(is_empty, math.inf)
    columns[2:4].masked_fill_(is_empty, -math.inf)
    columns[4].masked_fill_(is_empty, 1)
    return columns


def _compute_iou(anchors: Columns, boxes: Columns) -> Tensor:
    """IoU of columns that broadcast; the operations of `pairwise_iou` in the same order."""
    width = torch.minimum(anchors[2], boxes[2])
    width.sub_(torch.maximum(anchors[0], boxes[0])).clamp_(min=0)
    height = torch.minimum(anchors[3], boxes[3])
    height.sub_(torch.maximum(anchors[1], boxes[1])).clamp_(min=0)
    inter = width.mul_(height)
    union = (anchors[4] + boxes[4]).sub_(inter)
    return inter.div_(union)


def _start(anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`max_iou`, `matched_idxs` and `is_best_of_box` of (5, ...) anchors before any box."""
    max_iou = torch.zeros_like(anchors[0])
    matched_idxs = torch.zeros_like(max_iou, dtype=torch.int64)
    is_best_of_box = torch.zeros_like(max_iou, dtype=torch.bool)
    return max_iou, matched_idxs, is_best_of_box


def _finish(
    max_iou: Tensor, matched_idxs: Tensor, is_best_of_box: Tensor, max_iou_of_box: Tensor
) -> Matches:
    """Give anchors that overlap no box the first box that overlaps any anchor."""
    has_anchor = max_iou_of_box > 0
    first_with_anchor = has_anchor.byte().argmax()  # of bool, torch has no argmax
    return Matches(
        max_iou,
        torch.where(max_iou > 0, matched_idxs, first_with_anchor),
        is_best_of_box,
        max_iou_of_box,
    )
