"""FocalRetinaNet: Detectron2's RetinaNet with a classification loss and a normalizer of choice.

Shapes: N images, A anchors per cell, R anchors per image, K classes, C = `cls_loss.num_outputs(K)` logits per anchor.
"""

from collections.abc import Sequence
from typing import Any, Optional

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import batched_nms, cat
from detectron2.modeling.meta_arch.build import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.retinanet import RetinaNet, permute_to_N_HWA_K
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from focal_det.data.catalog import check_metadata, prepare_datasets
from focal_det.host import has_event_storage, put_scalar
from focal_det.losses import ClsLoss
from focal_det.losses.initial import compute_initial_loss
from focal_det.losses.normalizers import Normalizer
from focal_det.losses.targets import DenseTargets
from focal_det.messages import describe_unknown

from .assigners import Assigner, IoUAssigner, check_gt_classes, report_boxes_without_anchor
from .box_loss import BOX_LOSS_TYPES
from .build import (
    build_assigner,
    build_cls_loss,
    build_normalizer,
    check_finite,
    get_prior_prob,
)
from .dense_losses import build_targets, compute_dense_losses, normalize_cls_sums
from .retinanet_head import FocalRetinaNetHead
from .scripting import make_scriptable
from .telemetry import is_telemetry_due, put_telemetry, report_first_loss

_NUM_CLASSES_KEY = "MODEL.RETINANET.NUM_CLASSES"


@META_ARCH_REGISTRY.register()
class FocalRetinaNet(RetinaNet):
    """RetinaNet of arXiv 1708.02002 on Detectron2's parts; parameter names, config keys and checkpoints are RetinaNet's.

    Args:
        cls_loss: sums the classification loss per image and turns logits into scores.
        normalizer: turns positives per image into the divisor of both losses.
        assigner: labels the anchors; by default IoUAssigner with the `anchor_matcher`.
        retinanet_args: the other arguments of Detectron2's RetinaNet (backbone, head, anchor_generator, ...), but not
            `focal_loss_alpha` and `focal_loss_gamma`, which belong to `cls_loss`.
        dataset_names: of training and test sets, whose classes are compared with the model's at the first step.
        telemetry_period: iterations between figures of the classification loss in the metrics; 0 for none.
    """

    @configurable
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
        if self.box_reg_loss_type not in BOX_LOSS_TYPES:
            key = "box regression loss (MODEL.RETINANET.BBOX_REG_LOSS_TYPE)"
            raise ValueError(describe_unknown(key, self.box_reg_loss_type, BOX_LOSS_TYPES))
        self.cls_loss = cls_loss
        self.normalizer = normalizer
        self.assigner = assigner or IoUAssigner(
            matcher=self.anchor_matcher, num_classes=self.num_classes
        )
        self.dataset_names = dataset_names
        self.telemetry_period = telemetry_period
        self._is_first_step = True
        self._anchors: Optional[tuple[tuple, list[Boxes]]] = None

    @classmethod
    def from_config(cls, cfg) -> dict[str, Any]:
        check_finite(cfg)
        dataset_names = prepare_datasets(cfg, cfg.MODEL.RETINANET.NUM_CLASSES, _NUM_CLASSES_KEY)
        # All that can be refused comes before the backbone, which takes seconds to build.
        cls_loss = build_cls_loss(cfg)
        get_prior_prob(cfg)
        args = super().from_config(_without_head_norm(cfg))
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

    def forward(self, batched_inputs: list[dict[str, Any]]):
        """Losses in training, detections otherwise.

        Args:
            batched_inputs: outputs of Detectron2's DatasetMapper: "image" (3, H, W); in training "instances" with `gt_boxes` and
                `gt_classes`; otherwise optionally "height" and "width", the size to return boxes in.

        Returns:
            In training {"loss_cls": (), "loss_box_reg": ()}; otherwise a list of {"instances": Instances}.

        Raises:
            ValueError: in training, an image without "instances" or with a class id outside 0..K-1.
        """
        image_names = self._check_training_batch(batched_inputs) if self.training else []
        image_sizes, anchors, pred_logits, pred_anchor_deltas = self.predict(batched_inputs)
        if self.training:
            gt_instances = [x["instances"].to(self.device) for x in batched_inputs]
            without_anchor: list[Tensor] = []
            gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances, without_anchor)
            losses = self.losses(anchors, pred_logits, gt_labels, pred_anchor_deltas, gt_boxes)
            # After the losses, which wait for the device, so that this need not.
            report_boxes_without_anchor(
                image_names,
                [x["instances"].gt_boxes.tensor for x in batched_inputs],
                without_anchor,
            )
            if self._is_picture_due():
                with torch.no_grad():
                    results = self.inference(anchors, pred_logits, pred_anchor_deltas, image_sizes)
                self.visualize_training(batched_inputs, results)
            return losses

        results = self.inference(anchors, pred_logits, pred_anchor_deltas, image_sizes)
        processed = []
        for result, batch_item, image_size in zip(results, batched_inputs, image_sizes):
            height = batch_item.get("height", image_size[0])
            width = batch_item.get("width", image_size[1])
            processed.append({"instances": detector_postprocess(result, height, width)})
        return processed

    def _is_picture_due(self) -> bool:
        """Whether this training step is one of those that VIS_PERIOD draws."""
        if self.vis_period <= 0 or not has_event_storage():
            return False
        return get_event_storage().iter % self.vis_period == 0

    def predict(
        self, batched_inputs: list[dict[str, Any]]
    ) -> tuple[list[tuple[int, int]], list[Boxes], list[Tensor], list[Tensor]]:
        """Raw outputs of the network, before they become losses or detections.

        Returns:
            (height, width) of each image as it is in the batch, in pixels;
            anchors per level;
            logits per level (N, Ri, C);
            deltas per level (N, Ri, 4).
        """
        images = self.preprocess_image(batched_inputs)
        features = self.extract_features(images.tensor)
        pred_logits, pred_anchor_deltas = self.head(features)
        num_outputs = self.cls_loss.num_outputs(self.num_classes)
        pred_logits = [permute_to_N_HWA_K(x, num_outputs) for x in pred_logits]
        pred_anchor_deltas = [permute_to_N_HWA_K(x, 4) for x in pred_anchor_deltas]
        return images.image_sizes, self._get_anchors(features), pred_logits, pred_anchor_deltas

    def extract_features(self, images: Tensor) -> list[Tensor]:
        """Per level (N, channels, Hi, Wi) features of normalized and padded (N, 3, H, W) images."""
        features = self.backbone(_to_fast_layout(images))
        return [features[f] for f in self.head_in_features]

    def _check_training_batch(self, batched_inputs: list[dict[str, Any]]) -> list[str]:
        """Check a training batch where it still is on the CPU; return the names of its images."""
        if self._is_first_step:
            # A data set's class names are known once it has been loaded.
            check_metadata(self.dataset_names, self.num_classes, _NUM_CLASSES_KEY)
        names = []
        for index, batch_item in enumerate(batched_inputs):
            name = batch_item.get("file_name", batch_item.get("image_id", f"{index} of the batch"))
            if "instances" not in batch_item:
                raise ValueError(
                    f"Image {name} has no 'instances' to train on; does the data set have annotations?"
                )
            check_gt_classes(batch_item["instances"].gt_classes, self.num_classes, str(name))
            names.append(str(name))
        return names

    def _get_anchors(self, features: list[Tensor]) -> list[Boxes]:
        """Anchors per level, made anew when a feature map has another size than at the last call."""
        if torch.jit.is_tracing() or torch.jit.is_scripting():  # sizes are values there
            return self.anchor_generator(features)
        key = self.anchor_generator, features[0].device, [x.shape[2:] for x in features]
        if self._anchors is None or self._anchors[0] != key:
            self._anchors = key, self.anchor_generator(features)
        return self._anchors[1]

    @torch.no_grad()
    def label_anchors(
        self,
        anchors: list[Boxes],
        gt_instances: list[Instances],
        without_anchor: Optional[list[Tensor]] = None,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Label the anchors of each image; boxes that overlap no anchor get none.

        Args:
            anchors: per level.
            gt_instances: per image, on the device of the anchors.
            without_anchor: if a list, gets per image (M,) bool on the CPU, the boxes that overlap no anchor. From a GPU they
                are on their way: read them after something has waited for it.

        Returns:
            Per image, labels (R,) int64 in {-1 ignore, 0..K-1, K background} and matched boxes (R, 4).
        """
        all_anchors = Boxes.cat(anchors)
        gt_labels, gt_boxes, masks = zip(
            *(self.assigner.assign(all_anchors, x) for x in gt_instances)
        )
        if without_anchor is not None:
            all_masks = torch.cat(masks)
            on_cpu = all_masks.to("cpu", non_blocking=all_masks.is_cuda)
            without_anchor += on_cpu.split([len(x) for x in masks])
        return list(gt_labels), list(gt_boxes)

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
        divisor = self.normalizer(targets.num_pos)
        # Before the loss, whose state changes with each step.
        self._put_figures(pred_logits, targets, divisor)
        initial_loss = self._get_initial_loss(pred_logits, targets, divisor)
        loss_cls, loss_box_reg = compute_dense_losses(
            pred_logits,
            all_deltas,
            all_anchors,
            targets,
            divisor,
            cls_loss=self.cls_loss,
            box2box_transform=self.box2box_transform,
            box_loss_type=self.box_reg_loss_type,
            smooth_l1_beta=self.smooth_l1_beta,
        )
        if initial_loss is not None and targets.pos_idxs[0].numel():
            report_first_loss(loss_cls.item(), initial_loss.item())
        self._is_first_step = False
        return {"loss_cls": loss_cls, "loss_box_reg": loss_box_reg}

    def _put_figures(
        self, pred_logits: list[Tensor], targets: DenseTargets, divisor: Tensor
    ) -> None:
        """Give the figures of this step to the trainer's metrics."""
        put_scalar("num_pos_anchors", targets.pos_idxs[0].numel() / len(targets.num_pos))
        if is_telemetry_due(self.telemetry_period):
            put_telemetry(
                self.cls_loss,
                pred_logits,
                targets,
                divisor=divisor,
                prior_bias=self._get_prior_bias(),
                dataset_names=self.dataset_names,
                level_names=self.head_in_features,
            )

    def _get_prior_bias(self) -> Optional[Tensor]:
        """(C,) the bias that `cls_score` starts with, or None for a head that does not say."""
        bias = getattr(self.head, "prior_bias", None)
        return None if bias is None else bias[: self.cls_loss.num_outputs(self.num_classes)]

    def _get_initial_loss(
        self, pred_logits: list[Tensor], targets: DenseTargets, divisor: Tensor
    ) -> Optional[Tensor]:
        """What `loss_cls` of the first step is with every score at the prior.

        None after the first step, or if `cls_score` does not start at the prior. The same on all
        processes, as a loss may gather statistics over them.
        """
        bias = self._get_prior_bias()
        if not self._is_first_step or bias is None:
            return None
        if not torch.equal(self.head.cls_score.bias, self.head.prior_bias):
            return None
        level_sizes = [x.shape[1] for x in pred_logits]
        sums = compute_initial_loss(self.cls_loss, bias, targets, level_sizes)
        return normalize_cls_sums(self.cls_loss, sums, divisor)

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script compiles in the model's place."""
        return make_scriptable(self)

    def inference(
        self,
        anchors: list[Boxes],
        pred_logits: list[Tensor],
        pred_anchor_deltas: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[Instances]:
        """Detections of each image from per-level (N, Ri, C) logits and (N, Ri, 4) deltas; changes neither."""
        scores = [self.cls_loss.scores(x) for x in pred_logits]
        return [
            self.inference_single_image(
                anchors, [x[i] for x in scores], [x[i] for x in pred_anchor_deltas], size
            )
            for i, size in enumerate(image_sizes)
        ]

    def inference_single_image(
        self,
        anchors: list[Boxes],
        box_cls: list[Tensor],
        box_delta: list[Tensor],
        image_size: tuple[int, int],
    ) -> Instances:
        """Per level threshold and top k, then NMS per class over all levels (section 4.1 of arXiv 1708.02002).

        Args:
            anchors: per level.
            box_cls: per level (Ri, K) *scores* in [0, 1], with any Detectron2.
            box_delta: per level (Ri, 4).
            image_size: (height, width) in pixels.

        Returns:
            At most `max_detections_per_image` with `pred_boxes`, `scores`, `pred_classes`, by falling score.
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
        # Not as arguments: the Instances that Detectron2 0.5 makes for TorchScript takes none.
        detections = Instances(image_size)
        detections.pred_boxes = Boxes(boxes[keep])
        detections.scores = scores[keep]
        detections.pred_classes = classes[keep]
        return detections

    def _decode_level(
        self, anchors: Boxes, scores: Tensor, deltas: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes (T, 4), scores (T,) and classes (T,) of a level's T best candidates above the threshold.

        The T best pairs of anchor and class are of the T anchors whose best class scores highest, which are far fewer to sort.
        """
        # Sorted and cut, as a number of candidates would become a constant of a traced model.
        best_anchors = scores.amax(dim=1).argsort(descending=True)[: self.test_topk_candidates]
        scores = scores[best_anchors]
        ranks, class_idxs = torch.nonzero(scores > self.test_score_thresh).unbind(dim=1)
        candidates, order = scores[ranks, class_idxs].sort(descending=True)
        candidates = candidates[: self.test_topk_candidates]
        order = order[: self.test_topk_candidates]
        anchor_idxs, class_idxs = best_anchors[ranks[order]], class_idxs[order]
        boxes = self.box2box_transform.apply_deltas(
            deltas[anchor_idxs], anchors.tensor[anchor_idxs]
        )
        return boxes, candidates, class_idxs


def _without_head_norm(cfg: CfgNode) -> CfgNode:
    """A config for Detectron2's RetinaNet, whose own head is not used: 0.6 cannot build one with "GN"."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.RETINANET.NORM = ""
    return cfg


def _to_fast_layout(images: Tensor) -> Tensor:
    """(N, 3, H, W) images laid out channels last where convolutions are faster so: on a CPU, and on a GPU in mixed precision.

    The layout goes through the network; at its end the head's (N, A*C, Hi, Wi) outputs become (N, Ri, C) without a copy.
    """
    # Without its argument, which TorchScript does not know, it is about CUDA.
    is_faster = images.device.type == "cpu" or (images.is_cuda and torch.is_autocast_enabled())
    return images.contiguous(memory_format=torch.channels_last) if is_faster else images
