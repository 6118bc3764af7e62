"""Online hard example mining on dense anchors: table 1d of arXiv 1708.02002, after Shrivastava et al., arXiv 1604.03540."""

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
    """The anchors of one image that make its minibatch: by falling loss, with NMS over their boxes.

    NMS takes the hardest first, so what it keeps of the k hardest is what it keeps of all: k grows until that is enough, which
    gives the result of NMS over all anchors in a small part of its time. Of equal losses the anchor with the lower index is first.

    Args:
        losses: (R,) classification loss of each anchor.
        labels: (R,) int64 in {-1, 0..K}; ignored anchors are never taken.
        anchors: (R, 4) XYXY in absolute pixels.
        num_classes: K.
        batch: B, size of the minibatch.
        nms_thresh: an anchor is dropped if a harder one that is kept overlaps it with a larger IoU; 1 is no NMS.
        neg_per_pos: negatives per positive, after NMS: the hardest positives, at most B / (neg_per_pos + 1), and neg_per_pos times
            as many negatives, as for one positive where there is none. 0 does not tell them apart.

    Returns:
        (at most B,) int64 indices.
    """
    order = losses.sort(descending=True, stable=True).indices
    order = order[labels[order] >= 0]
    positive = labels[order] < num_classes
    max_pos = batch // (neg_per_pos + 1)
    k = min(len(order), 8 * batch)
    while True:
        keep = _nms(anchors[order[:k]], nms_thresh)
        if not neg_per_pos:
            if len(keep) >= batch or k == len(order):
                return order[keep[:batch]]
        else:
            pos, neg = keep[positive[keep]][:max_pos], keep[~positive[keep]]
            num_neg = neg_per_pos * max(len(pos), 1)
            no_more_pos = len(pos) == max_pos or not positive[k:].any()
            if (no_more_pos and len(neg) >= num_neg) or k == len(order):
                return order[torch.cat([pos, neg[:num_neg]])]
        k = min(len(order), 4 * k)


def _nms(boxes: Tensor, nms_thresh: float) -> Tensor:
    """Indices of the boxes that survive, in their order."""
    if nms_thresh >= 1:
        return torch.arange(len(boxes), device=boxes.device)
    from torchvision.ops import nms  # the other losses need torch only

    ranks = torch.arange(len(boxes), 0, -1, device=boxes.device, dtype=boxes.dtype)
    return nms(boxes, ranks, nms_thresh)


class OHEMLoss(ClsLoss):
    """Cross entropy of the hardest anchors of each image, as a mean over them; see `mine_hard_anchors`.

    An anchor's loss is its cross entropy summed over classes. The paper's best is a minibatch of 128 with NMS at 0.5; its 1:3
    variant is neg_per_pos = 3.

    Args:
        batch: anchors per image, >= 1; with a batch of all anchors and nms_thresh = 1 it is the mean cross entropy.
        nms_thresh: IoU in (0, 1]; 1 is no NMS.
        neg_per_pos: negatives per positive, below `batch`; 0 does not tell them apart.
    """

    needs = frozenset({"anchors"})
    self_normalized = True

    def __init__(self, *, batch: int = 128, nms_thresh: float = 0.5, neg_per_pos: int = 0) -> None:
        super().__init__()
        check_integer("batch", batch, "[1, inf)")
        check_number("nms_thresh", nms_thresh, "(0, 1]")
        check_integer(
            "neg_per_pos", neg_per_pos, f"[0, {batch})"
        )  # a positive and its negatives fit
        self.batch, self.nms_thresh, self.neg_per_pos = batch, nms_thresh, neg_per_pos

    def extra_repr(self) -> str:
        return f"batch={self.batch}, nms_thresh={self.nms_thresh}, neg_per_pos={self.neg_per_pos}"

    def forward(self, logits: Sequence[Tensor], targets: DenseTargets) -> Tensor:
        self.check_targets(targets)
        cross_entropy = {"pos_weight": 1.0, "neg_weight": 1.0, "gamma": 0.0}
        per_level = [
            focal_loss_per_anchor(x, labels, **cross_entropy)
            for x, labels, _ in split_levels(logits, targets)
        ]
        losses = torch.cat(per_level, dim=1)
        means = []
        for losses_of_image, labels in zip(losses, targets.gt_labels):
            idxs = mine_hard_anchors(
                losses_of_image.detach(),
                labels,
                targets.anchors,
                num_classes=targets.num_classes,
                batch=self.batch,
                nms_thresh=self.nms_thresh,
                neg_per_pos=self.neg_per_pos,
            )
            means.append(losses_of_image[idxs].sum() / max(len(idxs), 1))
        return torch.stack(means) if means else losses.sum(dim=1)
