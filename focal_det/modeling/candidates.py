"""Candidates for detections: the best pairs of an anchor and a class of one pyramid level."""

import torch
from torch import Tensor


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
