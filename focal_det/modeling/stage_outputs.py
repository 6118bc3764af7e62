"""What the stages of a detector predict for a batch, and the labels they are trained with.

A RetinaNet has one stage. A two-stage detector has "rpn", which classifies anchors, and "roi_head",
which classifies proposals (three times in a cascade).

Shapes: N images, R anchors or proposals per image, Ri of a level, K classes (1 for an RPN), C
logits per anchor or proposal (see `ClsLoss`).
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from focal_det.losses.targets import DenseTargets

from .dense_losses import build_targets

# The submodules of a two-stage detector by stage, with the keys that select them.
_PARTS = {"rpn": "proposal_generator", "roi_head": "roi_heads"}
_KEYS = {"rpn": "MODEL.PROPOSAL_GENERATOR.NAME", "roi_head": "MODEL.ROI_HEADS.NAME"}
STAGES = tuple(_PARTS)


@dataclass(frozen=True)
class StageOutputs:
    """Predictions of a stage for its anchors or proposals, and their labels.

    Attributes:
        pred_logits: per level (N, Ri, C).
        pred_deltas: (N, R, 4).
        anchors: (R, 4), or (N, R, 4) for proposals, XYXY in absolute pixels.
        gt_labels: (N, R) int64 in {-1, 0..K}: -1 is ignored, K is background.
        gt_boxes: (N, R, 4) XYXY matched boxes in absolute pixels.
        num_classes: K.
        box2box_transform: decodes deltas.
        level_names: of the feature maps; for proposals, one name for all.
    """

    pred_logits: Sequence[Tensor]
    pred_deltas: Tensor
    anchors: Tensor
    gt_labels: Tensor
    gt_boxes: Tensor
    num_classes: int
    box2box_transform: Box2BoxTransform
    level_names: Sequence[str]

    def build_targets(self, needs: Collection[str]) -> DenseTargets:
        """The targets for a loss; `needs` is a subset of {"iou", "anchors"}."""
        return build_targets(
            self.gt_labels,
            self.gt_boxes,
            self.num_classes,
            anchors=self.anchors,
            pred_anchor_deltas=self.pred_deltas,
            box2box_transform=self.box2box_transform,
            needs=needs,
        )


# Receives the outputs of a stage. The name tells the stages of a cascade apart; else it is empty.
Record = Callable[[str, StageOutputs], None]


@torch.no_grad()
def compute_stage_outputs(
    model: nn.Module, batch: list[dict[str, Any]], stage: str = ""
) -> dict[str, StageOutputs]:
    """Outputs of a stage in evaluation mode, but with the boxes and labels of training.

    All anchors or proposals are labelled, also those that a sample would leave out.

    Args:
        model: a RetinaNet with the methods of FocalRetinaNet; or a two-stage detector whose part
            for this stage has the method `measured`, like FocalRPN and FocalROIHeads.
        batch: outputs of Detectron2's DatasetMapper, with "instances".
        stage: one of STAGES; empty for a RetinaNet.

    Returns:
        By name: "stage0" and so on for a cascade; otherwise one, named "".

    Raises:
        ValueError: the model lacks those methods; names the key.
    """
    model.eval()
    if not stage:
        return {"": _compute_dense_outputs(model, batch)}
    parts: dict[str, Any] = {name: getattr(model, part, None) for name, part in _PARTS.items()}
    measured = {name: x for name, x in parts.items() if hasattr(x, "measured")}
    if stage not in measured:
        raise ValueError(
            f"{_KEYS[stage]} must be a part of focal_det, got {type(parts[stage]).__name__}"
        )
    found: dict[str, dict[str, StageOutputs]] = {name: {} for name in STAGES}
    with ExitStack() as stack:
        # Training mode for the model alone, to pass the objects on; its backbone stays in eval.
        stack.enter_context(replaced(model, training=True))
        for name, part in measured.items():
            stack.enter_context(part.measured(found[name].__setitem__))
        # Detectron2's parts put metrics into it; at iteration 0, any VIS_PERIOD draws a picture.
        stack.enter_context(EventStorage(1))
        model(batch)
    return found[stage]


def _compute_dense_outputs(model: nn.Module, batch: list[dict[str, Any]]) -> StageOutputs:
    if not all(hasattr(model, x) for x in ("predict", "decode_predictions", "label_anchors")):
        raise ValueError(
            f"MODEL.META_ARCHITECTURE must be FocalRetinaNet, got {type(model).__name__}"
        )
    # Any, as a model of another class may have these methods, too.
    detector = cast(Any, model)
    _, anchors, pred_logits, pred_deltas = detector.predict(batch)
    instances = [x["instances"].to(detector.device) for x in batch]
    predictions = detector.decode_predictions(anchors, pred_logits, pred_deltas)
    gt_labels, gt_boxes = detector.label_anchors(anchors, instances, predictions=predictions)
    return StageOutputs(
        pred_logits=pred_logits,
        pred_deltas=torch.cat(pred_deltas, dim=1),
        anchors=Boxes.cat(anchors).tensor,
        gt_labels=torch.stack(gt_labels),
        gt_boxes=torch.stack(gt_boxes),
        num_classes=detector.num_classes,
        box2box_transform=detector.box2box_transform,
        level_names=detector.head_in_features,
    )


@contextmanager
def replaced(target: Any, **values: Any) -> Iterator[None]:
    """Give attributes of an object other values within the block."""
    before = {name: getattr(target, name) for name in values}
    for name, value in values.items():
        setattr(target, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(target, name, value)
