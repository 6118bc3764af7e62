"""What a training set asks of a detector, measured: class balance, anchors, the first loss."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Optional

from detectron2.config import CfgNode

from focal_det.data.catalog import sample_evenly
from focal_det.modeling.settings import read_class_settings, read_stages

from .advice import Advice, make_advice
from .anchors import (
    AnchorFit,
    Anchors,
    AnchorSetup,
    build_anchor_setup,
    get_objects,
    measure_anchors,
)
from .class_weights import (
    MAX_ALPHA,
    ClassWeights,
    compute_class_weights,
    count_objects,
    get_weight_values,
)
from .first_loss import compute_first_loss
from .read import GetRecords, get_class_names, get_middle_size, read_training_set
from .stages import StageReport, count_balance, measure_stages
from .stages import to_json as stage_to_json
from .suggestion import MIN_GAIN, suggest_anchors

# Labelling takes most of the time, so the labelled images have about this many boxes at most,
# unless a single image has more.
_MAX_BOXES = 10_000
# Mean of the alphas if the config's alpha cannot be their mean: without weighting, it is -1.
_DEFAULT_ALPHA = 0.25


@dataclass(frozen=True)
class TrainingSetReport:
    """Measures of a training set, and suggestions for it.

    Attributes:
        class_names: K names.
        level_names: L names of feature maps.
        weights: objects, alpha and pi per class.
        num_images: of the training set.
        sample: the images whose anchors were labelled.
        size: shorter side of the images in training, in pixels; 0 if they are not resized.
        fit: fit of the config's anchors.
        stages: of the detector; the first classifies the anchors.
        anchors: suggested anchors, if others than the config's are worth it.
        fit_after: fit of the suggested anchors.
        loss_after: first loss of the first stage, with suggested anchors, pi and alpha; None if no
            suggestions were asked for, they do not change it, another loss is advised, or it is not
            known.
        advice: on loss and sampling, from recorded comparisons; empty for detectors without them.
        stands_in_for: see `AnchorSetup`.
    """

    class_names: Sequence[str]
    level_names: Sequence[str]
    weights: ClassWeights
    num_images: int
    sample: list[dict[str, Any]]
    size: int
    fit: AnchorFit
    stages: Sequence[StageReport]
    stands_in_for: str = ""
    anchors: Optional[Anchors] = None
    fit_after: Optional[AnchorFit] = None
    loss_after: Optional[float] = None
    advice: Sequence[Advice] = ()

    @property
    def initial_loss(self) -> Optional[float]:
        """Classification loss of the anchors in the first step; None if it is not known."""
        first_loss = self.stages[0].first_loss
        return None if first_loss is None else first_loss.loss


def measure_training_set(
    cfg: CfgNode, get_records: GetRecords, num_images: int, *, suggest: bool
) -> TrainingSetReport:
    """Count the objects of a training set, label its anchors, and suggest better settings.

    Args:
        num_images: images to label, at even distances; 0 for all. Fewer if they have many boxes.
        suggest: whether to search for better anchors.

    Raises:
        ValueError: as for `read_training_set`, `get_class_names` and `measure_anchors`.
    """
    records = read_training_set(cfg, get_records)
    class_names = get_class_names(cfg)
    sample = _choose_sample(records, num_images)
    setup = build_anchor_setup(cfg)
    fit = measure_anchors(sample, setup, progress="anchors" if suggest else "")
    anchors = None
    fit_after = None
    if suggest:
        anchors, fit_after = _find_better_anchors(cfg, sample, setup, fit)
    weights = _compute_weights(cfg, class_names, records, fit_after or fit)
    advice = make_advice(cfg, count_balance(fit_after or fit), weights.counts)
    batch = list(itertools.islice(itertools.cycle(sample), cfg.SOLVER.IMS_PER_BATCH))
    loss_after = _find_loss_after(cfg, weights, batch, setup, anchors, advice) if suggest else None
    return TrainingSetReport(
        class_names=class_names,
        level_names=setup.level_names,
        weights=weights,
        num_images=len(records),
        sample=sample,
        size=get_middle_size(cfg),
        fit=fit,
        stages=measure_stages(read_stages(cfg), fit, batch, setup),
        anchors=anchors,
        fit_after=fit_after,
        loss_after=loss_after,
        advice=advice,
        stands_in_for=setup.stands_in_for,
    )


def _choose_sample(records: list[dict[str, Any]], num_images: int) -> list[dict[str, Any]]:
    """Choose images at even distances, some with objects, with about _MAX_BOXES boxes at most."""
    sample = sample_evenly(records, num_images)
    if not any(map(get_objects, sample)):
        # So few images have objects that none of them was chosen.
        sample = sample_evenly([x for x in records if get_objects(x)], num_images)
    num_boxes = sum(len(get_objects(x)) for x in sample)
    if num_boxes > _MAX_BOXES:
        sample = sample_evenly(sample, max(1, len(sample) * _MAX_BOXES // num_boxes))
    return sample


def _find_better_anchors(
    cfg: CfgNode, sample: list[dict[str, Any]], setup: AnchorSetup, fit: AnchorFit
) -> tuple[Optional[Anchors], Optional[AnchorFit]]:
    """Anchors that reach more boxes, and their fit; None twice if there are none."""
    anchors = _suggest(cfg, sample, setup)
    if anchors is None:
        return None, None
    fit_after = measure_anchors(sample, setup.with_anchors(anchors), progress="better anchors")
    # The search looks at one anchor of each shape; the labels have the last word.
    if fit_after.score < fit.score + MIN_GAIN:
        return None, None
    return anchors, fit_after


def _suggest(cfg: CfgNode, sample: list[dict[str, Any]], setup: AnchorSetup) -> Optional[Anchors]:
    """Suggest anchors, unless each level has its own aspect ratios or the generator is unknown."""
    node = cfg.MODEL.ANCHOR_GENERATOR
    if node.NAME != "DefaultAnchorGenerator" or len(node.ASPECT_RATIOS) != 1:
        return None
    sizes = list(node.SIZES)
    if len(sizes) == 1:
        # Detectron2 reads a single entry as that of every level.
        sizes = sizes * len(setup.level_names)
    anchors = Anchors(sizes, list(node.ASPECT_RATIOS[0]), setup.strides)
    # Another backbone may have no p2 to add.
    is_known_backbone = cfg.MODEL.BACKBONE.NAME == "build_retinanet_resnet_fpn_backbone"
    may_add_level = is_known_backbone and setup.level_names[0] == "p3"
    return suggest_anchors(sample, setup, anchors, may_add_level=may_add_level)


def _compute_weights(
    cfg: CfgNode, class_names: Sequence[str], records: Sequence[dict[str, Any]], fit: AnchorFit
) -> ClassWeights:
    """Alpha and pi of each class, from the scalars of the config."""
    settings = read_class_settings(cfg)
    alpha = settings.alpha
    # Alphas per class cannot have a mean outside their own range.
    if not 0 < alpha <= MAX_ALPHA:
        alpha = _DEFAULT_ALPHA
    return compute_class_weights(
        class_names,
        count_objects(records, len(class_names)),
        settings,
        alpha=alpha,
        fit=fit,
    )


def _find_loss_after(
    cfg: CfgNode,
    weights: ClassWeights,
    batch: Sequence[dict[str, Any]],
    setup: AnchorSetup,
    anchors: Optional[Anchors],
    advice: Sequence[Advice],
) -> Optional[float]:
    """First loss of the first stage, with pi and alpha per class, and with `anchors` if given."""
    # The losses of two answers cannot be compared.
    if any(x.values for x in advice):
        return None
    values = get_weight_values(weights, read_class_settings(cfg))
    cfg = cfg.clone()
    cfg.merge_from_list([x for pair in values.items() for x in pair])
    stages = read_stages(cfg)
    if anchors:
        setup = setup.with_anchors(anchors)
    elif len(stages) > 1:
        # Only the other stage takes numbers per class.
        return None
    first_loss = compute_first_loss(stages[0], batch, setup)
    return None if first_loss is None else first_loss.loss


def to_json(report: TrainingSetReport) -> dict[str, Any]:
    """The measures as figures for a program."""
    fit = report.fit
    per_level = fit.positives_per_level / len(report.sample)
    suggested_anchors = None
    boxes_reached_after = None
    if report.anchors and report.fit_after:
        suggested_anchors = vars(report.anchors)
        boxes_reached_after = report.fit_after.score
    loss_name = report.stages[0].settings.loss_name
    figures = {
        "images": report.num_images,
        "objects_per_class": dict(zip(report.class_names, report.weights.counts.tolist())),
        "positives_per_image": float(fit.positives_per_image.mean()),
        "positives_per_level": dict(zip(report.level_names, per_level.tolist())),
        "boxes_reached": fit.score,
        "best_possible_recall": float(fit.has_positive.mean()),
        f"initial_{loss_name}": report.initial_loss,
        "suggested_anchors": suggested_anchors,
        f"initial_{loss_name}_with_suggested": report.loss_after,
        "boxes_reached_by_suggested": boxes_reached_after,
        "advice": [vars(x) for x in report.advice],
    }
    # One stage adds nothing to the figures above.
    if len(report.stages) > 1:
        figures["stages"] = [stage_to_json(x, report.weights.counts) for x in report.stages]
    return figures
