"""Detectron2's ROI heads, with a choice of losses and sampling for the box predictor."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import (
    CascadeROIHeads,
    FastRCNNOutputLayers,
    Res5ROIHeads,
    ROIHeads,
    StandardROIHeads,
)
from detectron2.structures import Instances
from torch import Tensor

from focal_det.data.catalog import check_metadata, prepare_datasets

from .assigners import check_gt_classes
from .build import check_finite
from .fast_rcnn import FocalFastRCNNOutputLayers
from .stage_outputs import Record, replaced

_NUM_CLASSES_KEY = "MODEL.ROI_HEADS.NUM_CLASSES"
# Larger than any number of proposals, so that the random sample takes them all.
_WITHOUT_SAMPLE = {"batch_size_per_image": 2**40, "positive_fraction": 0.5}


class _CheckedROIHeads(ROIHeads):
    """Base of our ROI heads: checks the input, and lets `sampling` switch off the random sample.

    Args:
        sampling: "random" for Detectron2's sample of `batch_size_per_image` proposals, up to
            `positive_fraction` of them positive; otherwise all proposals go to the box predictor.
        dataset_names: training and test sets, whose classes are compared with the model's at the
            first step.
        heads_args: the other arguments of Detectron2's class.
    """

    # The keys below MODEL.FOCAL_DET that they read, see `parts.get_keys_read`.
    focal_det_keys = ("ROI_BOX_HEAD", "PRIOR_PROB_PER_CLASS")

    @configurable  # type: ignore[untyped-decorator]  # Detectron2 has no annotations
    def __init__(
        self, *, sampling: str = "random", dataset_names: Sequence[str] = (), **heads_args: Any
    ) -> None:
        if sampling != "random":
            heads_args.update(_WITHOUT_SAMPLE)
        super().__init__(**heads_args)
        self._dataset_names = dataset_names
        self._is_first_step = True

    @classmethod
    def from_config(cls, cfg: CfgNode, *args: Any) -> dict[str, Any]:
        check_finite(cfg)
        names = prepare_datasets(cfg, cfg.MODEL.ROI_HEADS.NUM_CLASSES, _NUM_CLASSES_KEY)
        sampling = cfg.MODEL.FOCAL_DET.ROI_BOX_HEAD.SAMPLING
        return {
            **super().from_config(cfg, *args),
            "sampling": sampling,
            "dataset_names": names,
        }

    @contextmanager
    def measured(self, record: Record) -> Iterator[None]:
        """Within the block, label all proposals, pass the outputs to `record`; all losses are 0."""
        stages = [x.stage_losses for x in self.modules() if hasattr(x, "stage_losses")]
        is_cascade = len(stages) > 1
        others = {x: False for x in ("mask_on", "keypoint_on") if hasattr(self, x)}
        with ExitStack() as stack:
            for i, stage in enumerate(stages):
                stack.enter_context(stage.recorded(record, f"stage{i}" if is_cascade else ""))
            # Training mode for this module alone: its submodules keep their modes.
            stack.enter_context(replaced(self, training=True, **_WITHOUT_SAMPLE, **others))
            yield

    def label_and_sample_proposals(
        self, proposals: list[Instances], targets: list[Instances]
    ) -> list[Instances]:
        """Like Detectron2's, after checking the classes.

        Raises:
            ValueError: a class id outside 0..K-1, or a data set that does not have K classes.
        """
        if self._is_first_step:
            # Not earlier: class names are known only after the data set has been loaded.
            check_metadata(self._dataset_names, self.num_classes, _NUM_CLASSES_KEY)
            self._is_first_step = False
        # One wait for the device, not one for each image.
        gt_classes = torch.cat([x.gt_classes for x in targets]).cpu()
        for i, ids in enumerate(gt_classes.split([len(x) for x in targets])):
            check_gt_classes(ids, self.num_classes, f"{i} of the batch", _NUM_CLASSES_KEY)
        labelled: list[Instances] = super().label_and_sample_proposals(proposals, targets)
        return labelled


@ROI_HEADS_REGISTRY.register()
class FocalROIHeads(_CheckedROIHeads, StandardROIHeads):
    """StandardROIHeads with FocalFastRCNNOutputLayers, for Faster and Mask R-CNN with FPN."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, Any]) -> dict[str, Any]:
        args = super()._init_box_head(cfg, input_shape)
        return {**args, "box_predictor": _replace(cfg, args["box_predictor"])}


@ROI_HEADS_REGISTRY.register()
class FocalRes5ROIHeads(_CheckedROIHeads, Res5ROIHeads):
    """Res5ROIHeads with FocalFastRCNNOutputLayers, for Faster and Mask R-CNN with C4."""

    @classmethod
    def from_config(cls, cfg: CfgNode, *args: Any) -> dict[str, Any]:
        found = super().from_config(cfg, *args)
        return {**found, "box_predictor": _replace(cfg, found["box_predictor"])}


@ROI_HEADS_REGISTRY.register()
class FocalCascadeROIHeads(_CheckedROIHeads, CascadeROIHeads):
    """CascadeROIHeads with FocalFastRCNNOutputLayers in each stage, each with its own loss."""

    @classmethod
    def _init_box_head(cls, cfg: CfgNode, input_shape: dict[str, Any]) -> dict[str, Any]:
        args = super()._init_box_head(cfg, input_shape)
        return {**args, "box_predictors": [_replace(cfg, x) for x in args["box_predictors"]]}

    def _create_proposals_from_boxes(
        self, boxes: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> list[Instances]:
        """As Detectron2's.

        Raises:
            FloatingPointError: a stage has predicted a box that is infinite or NaN.
        """
        try:
            proposals: list[Instances] = super()._create_proposals_from_boxes(boxes, image_sizes)
        # Only such boxes fail an assertion there; an RPN raises FloatingPointError for them.
        except AssertionError as error:
            raise FloatingPointError(f"boxes of a stage of the cascade: {error}") from error
        return proposals


def _replace(cfg: CfgNode, layers: FastRCNNOutputLayers) -> FocalFastRCNNOutputLayers:
    """Our layers in place of Detectron2's, with the same initial weights."""
    # The random state stays as Detectron2's initialization has left it.
    with torch.random.fork_rng(devices=[]):
        ours: FocalFastRCNNOutputLayers = FocalFastRCNNOutputLayers(
            cfg, layers.cls_score.in_features, box2box_transform=layers.box2box_transform
        )
    ours.take_weights(layers)
    return ours
