"""Which box each anchor overlaps most, and which anchors each box overlaps most, without the matrix of all overlaps.

Shapes: M boxes in an image, R anchors (all levels); XYXY in absolute pixels. As columns they are (5, ...): x0, y0, x1, y1, area.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

# On a CPU, steps that torch keeps on one thread (below 2**15 numbers): when the cores are busy, waking others takes far longer.
_BLOCK_SIZE = 64  # consecutive anchors that are looked at or skipped together
_MAX_BLOCKS = 500  # in a step
_MAX_BLOCK_TESTS = 16000  # pairs of a box and a block in a step
_MAX_PAIRS = 2**22  # pairs of a box and an anchor in a step of other devices, 16 bytes each


@dataclass(frozen=True)
class Matches:
    """What Detectron2's Matcher reads off the (M, R) matrix of overlaps.

    Attributes:
        max_iou: (R,) in [0, 1], the largest IoU of each anchor with any box.
        matched_idxs: (R,) int64, the first box with that IoU; of an anchor that overlaps no box, the first box that overlaps any.
        is_best_of_box: (R,) bool, whether there is a box that overlaps the anchor, and no anchor more than this one.
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

    Every IoU is bit for bit that of Detectron2's `pairwise_iou`, so that thresholds and ties decide alike. A CPU skips blocks of
    anchors that are far from a box, most if neighbours in the list are neighbours in the image. Other devices compute all pairs, in
    steps of fixed shapes that never wait for a value.

    Args:
        anchors: (R, 4), R >= 1.
        boxes: (M, 4), M >= 1, of the same dtype and device. A box or anchor with a NaN, an infinite area or none overlaps nothing.
    """
    match = _match_near_pairs if anchors.device.type == "cpu" else _match_all_pairs
    return match(anchors, boxes)


def _match_near_pairs(anchors: Tensor, boxes: Tensor) -> Matches:
    num_anchors = len(anchors)
    boxes, anchors = (
        _to_columns(boxes),
        _to_columns(F.pad(anchors, (0, 0, 0, -num_anchors % _BLOCK_SIZE))),
    )
    anchors = anchors.unflatten(1, (-1, _BLOCK_SIZE))
    per_anchor = max_iou, matched_idxs, is_best_of_box = _start(anchors)
    max_iou_of_box = torch.zeros_like(boxes[0])
    for i, blocks in enumerate(_find_near_blocks(anchors, boxes)):
        if len(blocks) == 0:
            continue
        steps = blocks.split(_MAX_BLOCKS)
        ious = [
            _compute_iou([x.index_select(0, some) for x in anchors], boxes[:, i]) for some in steps
        ]
        best = max(x.max() for x in ious)
        if best == 0:
            continue
        max_iou_of_box[i] = best
        for some, iou in zip(steps, ious):
            old_iou, old_idxs, was_best = (x.index_select(0, some) for x in per_anchor)
            matched_idxs.index_copy_(0, some, old_idxs.masked_fill_(iou > old_iou, i))
            max_iou.index_copy_(0, some, torch.maximum(iou, old_iou))
            is_best_of_box.index_copy_(0, some, was_best.logical_or_(iou == best))
    return _finish(*(x.flatten()[:num_anchors] for x in per_anchor), max_iou_of_box)


def _find_near_blocks(anchors: Tensor, boxes: Tensor) -> Iterator[Tensor]:
    """For each of (5, M) boxes, the indices (b,) of those blocks of (5, B, size) anchors whose hull it overlaps."""
    top_left, bottom_right = anchors[:2, None].amin(dim=3), anchors[2:4, None].amax(dim=3)
    for some in boxes[:, :, None].split(max(1, _MAX_BLOCK_TESTS // anchors.shape[1]), dim=1):
        is_near = (some[:2] < bottom_right) & (some[2:4] > top_left)
        for row in is_near[0] & is_near[1]:
            yield row.nonzero().squeeze(1)


def _match_all_pairs(anchors: Tensor, boxes: Tensor) -> Matches:
    anchors, boxes = _to_columns(anchors), _to_columns(boxes)
    max_iou, matched_idxs, is_best_of_box = _start(anchors)
    max_iou_of_box, first = [], 0
    for some in boxes[:, :, None].split(max(1, _MAX_PAIRS // anchors.shape[1]), dim=1):
        iou = _compute_iou(anchors, some)
        best = iou.amax(dim=1, keepdim=True)
        max_iou_of_box.append(best.squeeze(1))
        is_best_of_box |= (iou == best.masked_fill(best == 0, math.inf)).any(dim=0)
        iou, idxs = iou.max(dim=0)  # of equals, the first
        matched_idxs = torch.where(iou > max_iou, idxs + first, matched_idxs)
        max_iou = torch.maximum(iou, max_iou)
        first += some.shape[1]
    return _finish(max_iou, matched_idxs, is_best_of_box, torch.cat(max_iou_of_box))


def _to_columns(boxes: Tensor) -> Tensor:
    """(5, n) columns of (n, 4) boxes; one whose area is not in (0, inf) becomes inf, inf, -inf, -inf and area 1.

    So it is empty to every comparison, and no IoU with it is NaN or 0 / 0.
    """
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    is_empty = ~((area > 0) & (area < math.inf))
    columns = torch.cat([boxes.t(), area[None]])
    columns[:2].masked_fill_(is_empty, math.inf)
    columns[2:4].masked_fill_(is_empty, -math.inf)
    columns[4].masked_fill_(is_empty, 1)
    return columns


def _compute_iou(anchors: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
    """IoU of columns that broadcast against each other, by the operations of Detectron2's `pairwise_iou` in their order."""
    width = (
        torch.minimum(anchors[2], boxes[2]).sub_(torch.maximum(anchors[0], boxes[0])).clamp_(min=0)
    )
    height = (
        torch.minimum(anchors[3], boxes[3]).sub_(torch.maximum(anchors[1], boxes[1])).clamp_(min=0)
    )
    inter = width.mul_(height)
    union = (anchors[4] + boxes[4]).sub_(inter)
    return inter.div_(union)


def _start(anchors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`max_iou`, `matched_idxs` and `is_best_of_box` of (5, ...) anchors before any box."""
    max_iou = torch.zeros_like(anchors[0])
    return (
        max_iou,
        torch.zeros_like(max_iou, dtype=torch.int64),
        torch.zeros_like(max_iou, dtype=torch.bool),
    )


def _finish(
    max_iou: Tensor, matched_idxs: Tensor, is_best_of_box: Tensor, max_iou_of_box: Tensor
) -> Matches:
    has_anchor = max_iou_of_box > 0
    first_with_anchor = has_anchor.byte().argmax()
    return Matches(
        max_iou,
        torch.where(max_iou > 0, matched_idxs, first_with_anchor),
        is_best_of_box,
        max_iou_of_box,
    )
