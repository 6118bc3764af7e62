"""Cross entropy without sampling: arXiv 1909.04868.

"Is Heuristic Sampling Necessary in Training Deep Object Detectors?".
"""

from .focal import FocalLoss


class SamplingFreeLoss(FocalLoss):
    """Cross entropy of all anchors, scaled to the box loss: "guided loss scaling".

    The focal loss with gamma = 0 and without alpha. The sum over hundreds of thousands of anchors
    would outweigh the box loss, so the detector multiplies it by the ratio of the two, see
    `scaled_to_box_loss`. The paper also starts from the prior of the labels, counted over the
    training set ("optimal bias initialization"): pass it as the `prior` of `bias`.
    """

    scaled_to_box_loss = True

    def __init__(self) -> None:
        super().__init__(alpha=-1, gamma=0.0)

    def extra_repr(self) -> str:
        return ""
