"""Online hard example mining on dense anchors: table 1d of arXiv 1708.02002.

After Shrivastava et al., arXiv 1604.03540.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments import check_integer, check_number
from .base import ClsLoss, split_levels
from .per_anchor import focal_loss_per_anchor
from .targets import DenseTargets


@torch.no_grad()
def mine_hard_anchors(
    losses: Tensor,
    labels: Tensor,
    anchors: Tensor,
    *,
    num_classes: int,
    batch: int,
    nms_thresh: float,
    neg_per_pos: int,
) -> Tensor:
    """The minibatch of one image: the hardest anchors that survive NMS over their boxes.

    With `neg_per_pos` > 0, the hardest positives and `neg_per_pos` times as many of the hardest
    negatives. Of equal losses, the anchor with the lower index comes first.

    Args:
        losses: (R,) classification loss of each anchor.
        labels: (R,) int64 in {-1, 0..K}; ignored anchors are never taken.
        anchors: (R, 4) XYXY in absolute pixels.
        num_classes: K.
        batch, nms_thresh, neg_per_pos: see `OHEMLoss`.

    Returns:
        (at most `batch`,) int64 indices.
    """
    order = losses.sort(descending=True, stable=True).indices
    order = order[labels[order] >= 0]
    is_pos = labels[order] < num_classes
    # NMS works from the hardest down, so whatever it keeps of the k hardest, it also keeps of all.
    # Growing k until enough survive gives the same result as NMS over all anchors, in a fraction
    # of the time.
    k = min(len(order), 8 * batch)
    while True:
        keep = _nms(anchors[order[:k]], nms_thresh)
        taken, is_enough = _take_minibatch(keep, is_pos, k, batch, neg_per_pos)
        if is_enough or k == len(order):
            return order[taken]
        k = min(len(order), 4 * k)


def _nms(boxes: Tensor, nms_thresh: float) -> Tensor:
    """Indices of the boxes that survive, in their order."""
    if nms_thresh >= 1:
        return torch.arange(len(boxes), device=boxes.device)
    from torchvision.ops import nms  # not at the top, as all other losses need torch alone

    # torchvision sorts by score; descending ranks as scores keep the order of equal losses.
    ranks = torch.arange(len(boxes), 0, -1, device=boxes.device, dtype=boxes.dtype)
    kept: Tensor = nms(boxes, ranks, nms_thresh)
    return kept


def _take_minibatch(
    keep: Tensor, is_pos: Tensor, k: int, batch: int, neg_per_pos: int
) -> tuple[Tensor, bool]:
    """Choose the minibatch from the survivors of NMS among the k hardest anchors.

    Args:
        keep: (n,) int64 indices into the hardest anchors, the hardest first.
        is_pos: bool for each anchor that is not ignored, the hardest first.
        k: number of the hardest anchors that NMS has seen.
        batch, neg_per_pos: see `OHEMLoss`.

    Returns:
        Up to `batch` indices, and whether they are final (a larger k could not change them).
    """
    if not neg_per_pos:
        return keep[:batch], len(keep) >= batch
    max_pos = batch // (neg_per_pos + 1)
    pos = keep[is_pos[keep]][:max_pos]
    neg = keep[~is_pos[keep]]
    num_neg = neg_per_pos * max(len(pos), 1)
    is_last_pos = len(pos) == max_pos or not bool(is_pos[k:].any())
    return torch.cat([pos, neg[:num_neg]]), is_last_pos and len(neg) >= num_neg


class OHEMLoss(ClsLoss):
    """Mean cross entropy of the hardest anchors of each image; see `mine_hard_anchors`.

    The loss of an anchor is its cross entropy summed over classes. The paper's best setting is a
    minibatch of 128 with NMS at 0.5; its 1:3 variant is neg_per_pos = 3.

    Args:
        batch: anchors per image, >= 1. With all anchors in the batch and nms_thresh = 1, the
            loss is the mean cross entropy.
        nms_thresh: IoU in (0, 1]: an anchor is dropped if a harder anchor that is kept overlaps it
            more than this; 1 disables NMS.
        neg_per_pos: negatives per positive, in [0, batch). 0: the hardest anchors of either kind.
            Above 0: up to batch // (neg_per_pos + 1) of the hardest positives, and neg_per_pos
            times as many of the hardest negatives (neg_per_pos of them if there are no positives).
    """

    needs = frozenset({"anchors"})
    self_normalized = True

    def __init__(self, *, batch: int = 128, nms_thresh: float = 0.5, neg_per_pos: int = 0) -> None:
        super().__init__()
        check_integer("batch", batch, "[1, inf)")
        check_number("nms_thresh", nms_thresh, "(0, 1]")
        # Below the batch size, so that a positive and its negatives fit.
        check_integer("neg_per_pos", neg_per_pos, f"[0, {batch})")
        self.batch = batch
        self.nms_thresh = nms_thresh
        self.neg_per_pos = neg_per_pos

    def extra_repr(self) -> str:
        return f"batch={self.batch}, nms_thresh={self.nms_thresh}, neg_per_pos={self.neg_per_pos}"

    def forward(self, logits: Sequence[Tensor], targets: DenseTargets) -> Tensor:
        self.check_targets(targets)
        assert targets.anchors is not None
        # The focal loss with gamma = 0 and without alpha.
        cross_entropy = {"pos_weight": 1.0, "neg_weight": 1.0, "gamma": 0.0}
        per_level = [
            focal_loss_per_anchor(x, labels, **cross_entropy)
            for x, labels, _ in split_levels(logits, targets)
        ]
        losses = torch.cat(per_level, dim=1)
        means = []
        for losses_of_image, labels, anchors in zip(losses, targets.gt_labels, targets.anchors):
            idxs = mine_hard_anchors(
                losses_of_image.detach(),
                labels,
                anchors,
                num_classes=targets.num_classes,
                batch=self.batch,
                nms_thresh=self.nms_thresh,
                neg_per_pos=self.neg_per_pos,
            )
            # At least 1, for an image whose anchors are all ignored: its loss is 0.
            means.append(losses_of_image[idxs].sum() / max(len(idxs), 1))
        if not means:  # a batch without images
            return losses.sum(dim=1)
        return torch.stack(means)
