"""FocalRetinaNet: Detectron2's RetinaNet with a choice of losses, normalizers and assigners.

Shapes: N images, A anchors per cell, R anchors per image, Ri anchors of a level, K classes,
C = `cls_loss.num_outputs(K)` logits per anchor.
"""

from collections.abc import Sequence
from typing import Any, Optional, Union, cast

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import batched_nms, cat
from detectron2.modeling.meta_arch.build import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.retinanet import RetinaNet, permute_to_N_HWA_K
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from focal_det.data.catalog import check_metadata, prepare_datasets
from focal_det.host import put_scalar
from focal_det.losses import ClsLoss
from focal_det.losses.normalizers import Normalizer
from focal_det.losses.targets import DenseTargets

from .assigners import Assigner, IoUAssigner, assign_anchors
from .box_loss import check_box_loss_type
from .build import build_assigner, build_cls_loss, build_normalizer, check_finite, get_prior_prob
from .candidates import decode_predictions, postprocess, select_candidates
from .dense_losses import build_targets, compute_dense_losses
from .first_step import compute_loss_at_prior, get_prior_bias, report_first_loss
from .ground_truth import check_training_batch, copy_to_cpu, report_boxes_without_anchor
from .memory_format import to_fast_layout
from .retinanet_head import FocalRetinaNetHead, without_head_norm
from .scripting import make_scriptable
from .telemetry import is_picture_due, is_telemetry_due, put_telemetry

_NUM_CLASSES_KEY = "MODEL.RETINANET.NUM_CLASSES"


@META_ARCH_REGISTRY.register()
class FocalRetinaNet(RetinaNet):
    """RetinaNet of arXiv 1708.02002 from Detectron2's parts, with a choice of losses.

    Parameter names, config keys and checkpoints are those of Detectron2's RetinaNet.

    Args:
        cls_loss: sums the classification loss per image and turns logits into scores.
        normalizer: turns positives per image into the divisor of both losses.
        assigner: labels the anchors; by default IoUAssigner with the `anchor_matcher`.
        dataset_names: training and test sets, whose classes are compared with the model's at the
            first step.
        telemetry_period: iterations between statistics in the metrics; 0 for none.
        retinanet_args: the other arguments of Detectron2's RetinaNet (backbone, head,
            anchor_generator, ...) except `focal_loss_alpha` and `focal_loss_gamma`, which belong to
            `cls_loss`.
    """

    # Below MODEL.FOCAL_DET, see `parts.get_keys_read`.
    focal_det_keys = (
        "ASSIGNER",
        "CLS_LOSS",
        "LOW_QUALITY_MATCHES",
        "NORMALIZER",
        "PRIOR_PROB_PER_CLASS",
    )

    @configurable  # type: ignore[untyped-decorator]  # Detectron2 has no annotations
    def __init__(
        self,
        *,
        cls_loss: ClsLoss,
        normalizer: Normalizer,
        assigner: Optional[Assigner] = None,
        dataset_names: Sequence[str] = (),
        telemetry_period: int = 0,
        **retinanet_args: Any,
    ) -> None:
        for key in ("focal_loss_alpha", "focal_loss_gamma"):
            if key in retinanet_args:
                raise ValueError(
                    f"{key} belongs to the loss: write cls_loss=FocalLoss(alpha=..., gamma=...)"
                )
        super().__init__(**retinanet_args)
        check_box_loss_type(self.box_reg_loss_type, "MODEL.RETINANET.BBOX_REG_LOSS_TYPE")
        self.cls_loss = cls_loss
        self.normalizer = normalizer
        self.assigner = assigner or IoUAssigner(
            matcher=self.anchor_matcher, num_classes=self.num_classes
        )
        self.dataset_names = dataset_names
        self.telemetry_period = telemetry_period
        self._is_first_step = True
        # The anchors of the last call, and what they depend on.
        self._anchors: Optional[tuple[tuple[Any, ...], list[Boxes]]] = None

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        check_finite(cfg)
        dataset_names = prepare_datasets(cfg, cfg.MODEL.RETINANET.NUM_CLASSES, _NUM_CLASSES_KEY)
        # Checks come before the backbone, which takes seconds to build.
        cls_loss = build_cls_loss(cfg)
        get_prior_prob(cfg)
        args = super().from_config(without_head_norm(cfg))
        # `cls_loss` already has them from the config.
        del args["focal_loss_alpha"], args["focal_loss_gamma"]
        backbone_shape = args["backbone"].output_shape()
        feature_shapes = [backbone_shape[x] for x in cfg.MODEL.RETINANET.IN_FEATURES]
        return {
            **args,
            "head": FocalRetinaNetHead(cfg, feature_shapes, cls_loss=cls_loss),
            "cls_loss": cls_loss,
            "normalizer": build_normalizer(cfg),
            "assigner": build_assigner(cfg),
            "dataset_names": dataset_names,
            "telemetry_period": cfg.MODEL.FOCAL_DET.TELEMETRY_PERIOD,
        }

    def forward(
        self, batched_inputs: list[dict[str, Any]]
    ) -> Union[dict[str, Tensor], list[dict[str, Instances]]]:
        """Losses in training, detections otherwise.

        Args:
            batched_inputs: outputs of Detectron2's DatasetMapper: "image" (3, H, W); in training
                "instances" with `gt_boxes` and `gt_classes`; otherwise optionally "height" and
                "width", the size to return boxes in.

        Returns:
            In training {"loss_cls": (), "loss_box_reg": ()}; otherwise {"instances": Instances} of
            each image.

        Raises:
            ValueError: in training, an image without "instances" or with a class id outside 0..K-1.
        """
        if self.training:
            return self._compute_step(batched_inputs)
        image_sizes, anchors, pred_logits, pred_anchor_deltas = self.predict(batched_inputs)
        results = self.inference(anchors, pred_logits, pred_anchor_deltas, image_sizes)
        return postprocess(results, batched_inputs)

    def _compute_step(self, batched_inputs: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Compute the losses of a training batch, and do the logging of the step."""
        if self._is_first_step:
            # Not earlier: the class names of a data set are known only once it is loaded.
            check_metadata(self.dataset_names, self.num_classes, _NUM_CLASSES_KEY)
        image_names = check_training_batch(batched_inputs, self.num_classes, _NUM_CLASSES_KEY)
        image_sizes, anchors, pred_logits, pred_anchor_deltas = self.predict(batched_inputs)
        gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
        without_anchor: list[Tensor] = []
        predictions = self.decode_predictions(anchors, pred_logits, pred_anchor_deltas)
        gt_labels, gt_boxes = self.label_anchors(
            anchors, gt_instances, without_anchor, predictions=predictions
        )
        losses = self.losses(anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes)
        # After the losses, which wait for the device, so that this does not wait again.
        boxes_on_cpu = [x["instances"].gt_boxes.tensor for x in batched_inputs]
        report_boxes_without_anchor(image_names, boxes_on_cpu, without_anchor)
        if is_picture_due(self.vis_period):
            with torch.no_grad():
                results = self.inference(anchors, pred_logits, pred_anchor_deltas, image_sizes)
            self.visualize_training(batched_inputs, results)
        return losses

    def predict(
        self, batched_inputs: list[dict[str, Any]]
    ) -> tuple[list[tuple[int, int]], list[Boxes], list[Tensor], list[Tensor]]:
        """Raw outputs of the network, before they become losses or detections.

        Returns:
            (height, width) of each image in the batch, without padding, in pixels;
            anchors per level;
            logits per level (N, Ri, C);
            deltas per level (N, Ri, 4).
        """
        images = self.preprocess_image(batched_inputs)
        features = self.extract_features(images.tensor)
        pred_logits, pred_anchor_deltas = self.head(features)
        num_outputs = self.cls_loss.num_outputs(self.num_classes)
        # Views if the layout is channels last, see `to_fast_layout`.
        pred_logits = [permute_to_N_HWA_K(x, num_outputs) for x in pred_logits]
        pred_anchor_deltas = [permute_to_N_HWA_K(x, 4) for x in pred_anchor_deltas]
        return images.image_sizes, self._get_anchors(features), pred_logits, pred_anchor_deltas

    def get_prediction_head(self) -> nn.Module:
        """The module whose outputs are logits and deltas."""
        return cast(nn.Module, self.head)

    def extract_features(self, images: Tensor) -> list[Tensor]:
        """Per level (N, channels, Hi, Wi) features of normalized and padded (N, 3, H, W) images."""
        features = self.backbone(to_fast_layout(images))
        return [features[f] for f in self.head_in_features]

    def _get_anchors(self, features: list[Tensor]) -> list[Boxes]:
        """Anchors per level; those of the last call if no feature map has changed its size."""
        # For TorchScript, sizes are values of the graph, not numbers to compare.
        if torch.jit.is_tracing() or torch.jit.is_scripting():
            anchors: list[Boxes] = self.anchor_generator(features)
            return anchors
        key = (self.anchor_generator, features[0].device, [x.shape[2:] for x in features])
        if self._anchors is None or self._anchors[0] != key:
            self._anchors = (key, self.anchor_generator(features))
        return self._anchors[1]

    @torch.no_grad()
    def label_anchors(
        self,
        anchors: list[Boxes],
        gt_instances: list[Instances],
        without_anchor: Optional[list[Tensor]] = None,
        *,
        predictions: Optional[Sequence[Instances]] = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Labels (R,) and matched boxes (R, 4) of each image, see `assign_anchors`.

        Args:
            anchors: per level.
            gt_instances: per image, on the device of the anchors.
            without_anchor: a list that receives (M,) bool of each image, see `copy_to_cpu`.
            predictions: per image, see `decode_predictions`.
        """
        gt_labels, gt_boxes, masks = assign_anchors(
            self.assigner, anchors, gt_instances, predictions
        )
        if without_anchor is not None:
            without_anchor += copy_to_cpu(masks)
        return gt_labels, gt_boxes

    @torch.no_grad()
    def decode_predictions(
        self, anchors: list[Boxes], pred_logits: list[Tensor], pred_anchor_deltas: list[Tensor]
    ) -> Optional[list[Instances]]:
        """Per image, what is predicted at each anchor; None if the assigner does not need it."""
        if not self.assigner.needs_predictions:
            return None
        scores = cat([self.cls_loss.scores(x) for x in pred_logits], dim=1)
        deltas = cat(pred_anchor_deltas, dim=1)
        return decode_predictions(scores, deltas, Boxes.cat(anchors), self.box2box_transform)

    def losses(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        gt_labels: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        gt_boxes: list[Tensor],
    ) -> dict[str, Tensor]:
        """Normalized losses.

        Args:
            anchors: per level.
            pred_logits: per level (N, Ri, C).
            gt_labels, gt_boxes: per image (R,) and (R, 4), see `label_anchors`.
            pred_anchor_deltas: per level (N, Ri, 4).

        Returns:
            {"loss_cls": (), "loss_box_reg": ()}.
        """
        all_anchors = Boxes.cat(anchors).tensor
        all_deltas = cat(pred_anchor_deltas, dim=1)
        targets = build_targets(
            torch.stack(gt_labels),
            torch.stack(gt_boxes),
            self.num_classes,
            anchors=all_anchors,
            pred_anchor_deltas=all_deltas,
            box2box_transform=self.box2box_transform,
            needs=self.cls_loss.needs,
        )
        loss_cls, loss_box_reg = self._compute_losses(targets, pred_logits, all_deltas, all_anchors)
        return {"loss_cls": loss_cls, "loss_box_reg": loss_box_reg}

    def _compute_losses(
        self,
        targets: DenseTargets,
        pred_logits: list[Tensor],
        pred_anchor_deltas: Tensor,
        anchors: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Both losses from (N, Ri, C) logits per level, (N, R, 4) deltas and (R, 4) anchors."""
        divisor = self.normalizer.compute_divisor(targets)
        # Before the loss, whose state changes with each step.
        prior_bias = get_prior_bias(self.head, self.cls_loss.num_outputs(self.num_classes))
        self._put_figures(pred_logits, targets, divisor, prior_bias)
        initial_loss = None
        if self._is_first_step and prior_bias is not None:
            level_sizes = [x.shape[1] for x in pred_logits]
            initial_loss = compute_loss_at_prior(
                self.head.cls_score.bias,
                prior_bias,
                self.cls_loss,
                targets,
                divisor,
                level_sizes,
            )
        loss_cls, loss_box_reg = compute_dense_losses(
            pred_logits,
            pred_anchor_deltas,
            anchors,
            targets,
            divisor,
            cls_loss=self.cls_loss,
            box2box_transform=self.box2box_transform,
            box_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        if initial_loss is not None and targets.pos_idxs[0].numel():
            report_first_loss("loss_cls", loss_cls.item(), initial_loss.item())
        self._is_first_step = False
        return loss_cls, loss_box_reg

    def _put_figures(
        self,
        pred_logits: list[Tensor],
        targets: DenseTargets,
        divisor: Tensor,
        prior_bias: Optional[Tensor],
    ) -> None:
        """Put the figures of this step into the trainer's metrics."""
        # Detectron2's own figure, under Detectron2's name.
        put_scalar("num_pos_anchors", targets.pos_idxs[0].numel() / len(targets.num_pos))
        if is_telemetry_due(self.telemetry_period):
            put_telemetry(
                self.cls_loss,
                pred_logits,
                targets,
                divisor=divisor,
                prior_bias=prior_bias,
                dataset_names=self.dataset_names,
                level_names=self.head_in_features,
            )

    def __prepare_scriptable__(self) -> nn.Module:
        """The module that torch.jit.script compiles instead of the model."""
        return make_scriptable(self)

    def inference(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Detections of each image from per-level (N, Ri, C) logits and (N, Ri, 4) deltas."""
        scores = [self.cls_loss.scores(x) for x in pred_logits]
        results = []
        for i, size in enumerate(image_sizes):
            image_scores = [x[i] for x in scores]
            image_deltas = [x[i] for x in pred_anchor_deltas]
            results.append(self.inference_single_image(anchors, image_scores, image_deltas, size))
        return results

    def inference_single_image(
        self,
        anchors: list[Boxes],
        box_cls: list[Tensor],
        box_delta: list[Tensor],
        image_size: tuple[int, int],
    ) -> Instances:
        """Best candidates per level, then NMS per class (section 4.1 of arXiv 1708.02002).

        Args:
            anchors: per level.
            box_cls: per level (Ri, K) *scores* in [0, 1], whichever version of Detectron2 is used.
            box_delta: per level (Ri, 4).
            image_size: (height, width) in pixels.

        Returns:
            `pred_boxes`, falling `scores`, `pred_classes`; at most `max_detections_per_image`.
        """
        # Lists and plain loops, as TorchScript compiles this, too.
        boxes_per_level: list[Tensor] = []
        scores_per_level: list[Tensor] = []
        classes_per_level: list[Tensor] = []
        for anchors_of_level, scores, deltas in zip(anchors, box_cls, box_delta):
            boxes, scores, classes = self._decode_level(anchors_of_level, scores, deltas)
            boxes_per_level.append(boxes)
            scores_per_level.append(scores)
            classes_per_level.append(classes)
        boxes = cat(boxes_per_level)
        scores = cat(scores_per_level)
        classes = cat(classes_per_level)
        keep = batched_nms(boxes, scores, classes, self.test_nms_thresh)
        keep = keep[: self.max_detections_per_image]
        # Set one by one: in TorchScript, Detectron2 0.5 has an Instances without these arguments.
        detections = Instances(image_size)
        detections.pred_boxes = Boxes(boxes[keep])
        detections.scores = scores[keep]
        detections.pred_classes = classes[keep]
        return detections

    def _decode_level(
        self, anchors: Boxes, scores: Tensor, deltas: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (T, 4), scores (T,) and classes (T,) of the best candidates of a level."""
        anchor_idxs, class_idxs, candidates = select_candidates(
            scores, self.test_score_thresh, self.test_topk_candidates
        )
        boxes = self.box2box_transform.apply_deltas(
            deltas[anchor_idxs], anchors.tensor[anchor_idxs]
        )
        return boxes, candidates, class_idxs
