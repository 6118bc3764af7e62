"""How much of the loss the hard anchors carry, figure 4 of arXiv 1708.02002.

The losses of all anchors of a trained model, or of all proposals of its box head, are sorted from
low to high, summed and normalized to 1, separately for positives and negatives.

Shapes: N images, R anchors or proposals per image, K classes.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional, cast

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper
from detectron2.data.transforms import ResizeShortestEdge
from torch import Tensor, nn

from focal_det.data.catalog import sample_evenly
from focal_det.losses import PointwiseClsLoss
from focal_det.losses.base import split_levels
from focal_det.losses.targets import DenseTargets
from focal_det.messages import describe_unknown
from focal_det.modeling.build import build_cls_loss, get_value, read_settings
from focal_det.modeling.parts import PROPOSAL_GENERATOR, ROI_HEADS, find_readers
from focal_det.modeling.settings import read_stages
from focal_det.modeling.stage_outputs import STAGES, StageOutputs, compute_stage_outputs

from .loss_histogram import LossHistogram
from .loss_specs import build_loss

SIDES = ("positive", "negative")
GROUPINGS = ("class", "level", "size")
_BOX_HEAD = STAGES[-1]
_GAMMAS = (0.0, 0.5, 1.0, 2.0)  # of the paper's figure
# Upper bounds of the areas of COCO's sizes, in pixels of the image on disk.
_MAX_AREAS = {"small": 32**2, "medium": 96**2, "large": float("inf")}
_MAX_POINTS = 400  # of a curve in json

# By curve, and then by side.
Histograms = dict[str, dict[str, LossHistogram]]


@dataclass(frozen=True)
class Groups:
    """Anchors in groups.

    Attributes:
        index: (N, R) int64 group of each anchor.
        names: of the groups.
        has_negatives: whether negatives are in groups as well.
    """

    index: Tensor
    names: Sequence[str]
    has_negatives: bool


@dataclass(frozen=True)
class MeasuredStage:
    """The stage of a detector whose loss is measured.

    Attributes:
        name: one of STAGES; empty for a RetinaNet, which has only one.
        boxes: what it classifies, "anchors" or "proposals".
        num_classes: K; 1 for an RPN.
        num_outputs: C, logits of each anchor or proposal.
        alpha: of its loss; -1 for no weighting.
    """

    name: str
    boxes: str
    num_classes: int
    num_outputs: int
    alpha: float


def choose_stage(cfg: CfgNode, name: Optional[str]) -> MeasuredStage:
    """The stage of a RetinaNet; of a two-stage detector the one named, or else the box head.

    Raises:
        ValueError: the detector has no stage of this name, or the stage is Detectron2's own;
            names the key.
    """
    settings = read_settings(cfg)
    if not settings.node_key:
        raise ValueError(
            "MODEL.META_ARCHITECTURE must be FocalRetinaNet or GeneralizedRCNN, got "
            f"{cfg.MODEL.META_ARCHITECTURE}"
        )
    if settings.is_dense and name:
        raise ValueError(f"--stage {name}: a RetinaNet has one stage only")
    if settings.is_dense:
        num_outputs = build_cls_loss(cfg).num_outputs(settings.num_classes)
        return MeasuredStage("", "anchors", settings.num_classes, num_outputs, settings.alpha)
    name = name or _BOX_HEAD
    stage = read_stages(cfg)[STAGES.index(name)]
    # Parts of Detectron2 read no key, and have no method to measure them with.
    if not stage.key or stage.loss is None:
        part_key = (PROPOSAL_GENERATOR, ROI_HEADS)[STAGES.index(name)]
        parts = find_readers(part_key, ("RPN", "ROI_BOX_HEAD")[STAGES.index(name)])
        raise ValueError(
            f"--stage {name}: {part_key} must be one of {', '.join(parts)}, got "
            f"{get_value(cfg, part_key)}"
        )
    cls_loss = stage.loss.cls_loss
    return MeasuredStage(
        name=name,
        boxes=stage.boxes,
        num_classes=stage.num_classes,
        num_outputs=cls_loss.num_outputs(stage.num_classes),
        alpha=getattr(cls_loss, "alpha", -1.0),
    )


def build_losses(
    cfg: CfgNode, stage: MeasuredStage, gammas: Sequence[float], specs: Sequence[str]
) -> dict[str, PointwiseClsLoss]:
    """The losses to measure, by the name of their curve.

    Args:
        gammas: of focal losses with the alpha of the config and with sigmoids or a softmax, as in
            the model; if these and `specs` are both empty, those of the paper's figure.
        specs: further losses, see `parse_loss`.

    Raises:
        ValueError: a loss that cannot be built, has no loss per anchor, or needs other logits than
            the model has.
    """
    if not gammas and not specs:
        gammas = _GAMMAS
    focal = "FocalLoss" if stage.num_outputs == stage.num_classes else "SoftmaxFocalLoss"
    by_name = {f"gamma {x:g}": f"{focal}:gamma={x!r},alpha={stage.alpha!r}" for x in gammas}
    by_name.update({x: x for x in specs})
    losses = {}
    for name, spec in by_name.items():
        loss = build_loss(spec, stage.num_classes)
        if not loss.pointwise:
            raise ValueError(f"{spec}: the loss of an anchor depends on the other anchors")
        num_needed = loss.num_outputs(stage.num_classes)
        if num_needed != stage.num_outputs:
            raise ValueError(
                f"{spec}: needs {num_needed} logits per anchor, the model has {stage.num_outputs}"
            )
        # `pointwise` says that the loss has the methods, whatever its class.
        losses[name] = cast(PointwiseClsLoss, loss.to(cfg.MODEL.DEVICE).eval())
    return losses


def choose_dataset(cfg: CfgNode, name: Optional[str]) -> str:
    """A registered data set: `name`, or else the first of DATASETS.TEST.

    Raises:
        ValueError: there is none, or it is not registered; names the nearest one.
    """
    if not (name or cfg.DATASETS.TEST):
        raise ValueError("the config has no DATASETS.TEST; name a data set with --dataset")
    name = name or cfg.DATASETS.TEST[0]
    if name not in DatasetCatalog.list():
        raise ValueError(describe_unknown("data set", name, DatasetCatalog.list()))
    return name


def read_batches(
    cfg: CfgNode, dataset: str, num_images: int, batch_size: int
) -> list[list[dict[str, Any]]]:
    """`num_images` dataset dicts at even distances in the data set, or all if 0, in batches."""
    records = sample_evenly(DatasetCatalog.get(dataset), num_images)
    return [records[i : i + batch_size] for i in range(0, len(records), batch_size)]


def measure_losses(
    cfg: CfgNode,
    model: nn.Module,
    losses: Mapping[str, PointwiseClsLoss],
    batches: Iterable[Sequence[dict[str, Any]]],
    *,
    stage: str = "",
    by: Optional[str] = None,
    class_names: Sequence[str] = (),
) -> Histograms:
    """Losses of all anchors of the images, without the ignored ones.

    Args:
        cfg: of the model.
        model: see `compute_stage_outputs`.
        losses: by the name of their curve.
        batches: of `read_batches`.
        stage: name of a MeasuredStage. For the box head, all that is said of anchors holds for
            proposals; a cascade has curves for each of its stages.
        by: one of `GROUPINGS`, for a curve per group, named after the loss and the group. Negatives
            have no class and no size, and stay in one curve.
        class_names: K names.

    Raises:
        ValueError: the model lacks the stage, or the stage has no such groups.
    """
    if by == "level" and stage == _BOX_HEAD:
        raise ValueError("--by level: the proposals of a box head have no level")
    if by == "class" and stage not in ("", _BOX_HEAD):
        raise ValueError(f"--by class: the {stage} does not tell classes apart")
    histograms = make_histograms()
    for inputs in _map_inputs(cfg, batches):
        add_batch(histograms, model, losses, inputs, stage=stage, by=by, class_names=class_names)
    return histograms


def make_histograms() -> Histograms:
    """Empty histograms, for any name of a curve."""
    return defaultdict(lambda: {side: LossHistogram() for side in SIDES})


def _map_inputs(
    cfg: CfgNode, batches: Iterable[Sequence[dict[str, Any]]]
) -> Iterator[list[dict[str, Any]]]:
    """Inputs with ground truth, as in training, but resized as in evaluation and not flipped."""
    resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    # In evaluation, the mapper would drop the ground truth.
    mapper = DatasetMapper(is_train=True, augmentations=[resize], image_format=cfg.INPUT.FORMAT)
    for records in batches:
        yield [mapper(x) for x in records]


@torch.no_grad()
def add_batch(
    histograms: Histograms,
    model: nn.Module,
    losses: Mapping[str, PointwiseClsLoss],
    inputs: list[dict[str, Any]],
    *,
    stage: str = "",
    by: Optional[str] = None,
    class_names: Sequence[str] = (),
) -> None:
    """Add the losses of one batch; for the arguments, see `measure_losses`.

    Args:
        inputs: of Detectron2's DatasetMapper in training.
    """
    needs = frozenset().union(*(loss.needs for loss in losses.values()))
    for stage_name, outputs in compute_stage_outputs(model, inputs, stage).items():
        targets = outputs.build_targets(needs)
        groups = _make_groups(outputs, targets, inputs, by, class_names)
        # A background anchor has no object, and so no class or size, but it does have a level.
        groups_of_negatives = groups if groups and groups.has_negatives else None
        is_negative = targets.gt_labels == targets.num_classes
        is_positive = (targets.gt_labels >= 0) & ~is_negative
        # Level by level: one tensor of all logits would double the memory.
        levels = list(split_levels(outputs.pred_logits, targets))
        for loss_name, loss in losses.items():
            name = ", ".join(filter(None, (loss_name, stage_name)))
            values = torch.cat([loss.per_anchor(*level) for level in levels], dim=1)
            _add_side(histograms, name, "positive", values, is_positive, groups)
            _add_side(histograms, name, "negative", values, is_negative, groups_of_negatives)


def _make_groups(
    outputs: StageOutputs,
    targets: DenseTargets,
    inputs: Sequence[Mapping[str, Any]],
    by: Optional[str],
    class_names: Sequence[str],
) -> Optional[Groups]:
    if by == "class":
        return Groups(targets.gt_labels, class_names, has_negatives=False)
    if by == "level":
        names = [x.upper() for x in outputs.level_names]
        return _group_by_level(targets, [x.shape[1] for x in outputs.pred_logits], names)
    if by == "size":
        return _group_by_size(targets, inputs)
    return None


def _add_side(
    histograms: Histograms,
    name: str,
    side: str,
    values: Tensor,
    mask: Tensor,
    groups: Optional[Groups],
) -> None:
    """Add the (N, R) losses where the mask is set, in groups if there are any."""
    if groups is None:
        histograms[name][side].add(values[mask])
        return
    for i, group in enumerate(groups.names):
        histograms[f"{name}, {group}"][side].add(values[mask & (groups.index == i)])


def _group_by_level(
    targets: DenseTargets, anchors_per_level: Sequence[int], names: Sequence[str]
) -> Groups:
    counts = torch.tensor(anchors_per_level, device=targets.gt_labels.device)
    index = torch.arange(len(counts), device=counts.device).repeat_interleave(counts)
    return Groups(index.expand_as(targets.gt_labels), names, has_negatives=True)


def _group_by_size(targets: DenseTargets, inputs: Sequence[Mapping[str, Any]]) -> Groups:
    """By the area of the matched box in the image on disk, which the model sees resized."""
    boxes = targets.gt_boxes
    scales = boxes.new_tensor([x["height"] / x["image"].shape[1] for x in inputs])
    areas = (boxes[..., 2:] - boxes[..., :2]).prod(dim=2) * scales[:, None] ** 2
    *bounds, _ = _MAX_AREAS.values()
    # An object of exactly 32² pixels is medium; COCO counts it as small and as medium.
    index = torch.bucketize(areas, areas.new_tensor(bounds), right=True)
    return Groups(index, list(_MAX_AREAS), has_negatives=False)


def summarize(histograms: Mapping[str, Mapping[str, LossHistogram]]) -> list[dict[str, Any]]:
    """Figures for json, a row for each curve and side that has losses.

    Args:
        histograms: by curve and then by side (`SIDES`).
    """
    return [
        _summarize_side(name, side, histogram)
        for name, sides in histograms.items()
        for side, histogram in sides.items()
        if histogram.count
    ]


def _summarize_side(name: str, side: str, histogram: LossHistogram) -> dict[str, Any]:
    fractions, shares = histogram.compute_curve()
    step = max(1, len(fractions) // _MAX_POINTS)
    # The last point is kept, so that every curve ends at (1, 1).
    points = sorted({*range(0, len(fractions), step), len(fractions) - 1})
    return {
        "curve": name,
        "side": side,
        "anchors": histogram.count,
        "share_of_hardest_1_percent": histogram.compute_share_of_hardest(0.01),
        "share_of_hardest_20_percent": histogram.compute_share_of_hardest(0.2),
        "max_error": histogram.compute_max_error(),
        "fractions": fractions[points].tolist(),
        "shares": shares[points].tolist(),
    }


def describe_row(row: Mapping[str, Any]) -> str:
    """A row of `summarize` as a sentence."""
    hardest = [row[f"share_of_hardest_{x}_percent"] for x in (1, 20)]
    one, twenty = (f"{100 * x:.1f} %" for x in hardest)
    return (
        f"{row['curve']}: of {row['anchors']:,} {row['side']}s the hardest 1 % carry {one} of the "
        f"loss, the hardest 20 % {twenty} (error of the curve below {row['max_error']:.1e})"
    )
