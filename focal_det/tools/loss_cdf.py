"""How much of the loss the hardest anchors of a trained model carry: figure 4 of the paper, for any loss per anchor."""

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Optional

import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.modeling import build_model
from detectron2.structures import Boxes
from torch import Tensor
from tqdm import tqdm

from focal_det.checkpoint.checkpointer import load_all_weights
from focal_det.data.catalog import sample_evenly
from focal_det.env import load_config
from focal_det.experiments.loss_cdf import SIDES, LossHistogram, summarize
from focal_det.experiments.loss_specs import parse_loss
from focal_det.losses import PointwiseClsLoss
from focal_det.losses.base import split_levels
from focal_det.losses.targets import DenseTargets
from focal_det.messages import describe_unknown
from focal_det.modeling.box_loss import iou_of_predictions
from focal_det.modeling.build import build_cls_loss, read_settings
from focal_det.modeling.retinanet import FocalRetinaNet
from focal_det.registry import CLS_LOSS_REGISTRY
from focal_det.report.loss_cdf import draw_loss_cdf

_SUFFIXES = (".png", ".svg", ".pdf")
_SIZES = {
    "small": 32**2,
    "medium": 96**2,
    "large": float("inf"),
}  # COCO's, area in pixels of the image as it is on disk
Histograms = dict[str, dict[str, LossHistogram]]


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; see `--help`."""
    parser = _make_parser()
    args = parser.parse_args(argv)
    if args.write.suffix.lower() not in _SUFFIXES:
        parser.error(
            f"--write takes a file that ends in {', '.join(_SUFFIXES)}, got {str(args.write)!r}"
        )
    if args.batch < 1 or args.images < 0:
        parser.error(f"--batch must be >= 1 and --images >= 0, got {args.batch} and {args.images}")
    try:
        cfg = _load_config(args)
        losses = _build_losses(args, cfg)
        model = build_model(cfg).eval()
        records, dataset = _load_records(cfg, args)
        load_all_weights(model, cfg.MODEL.WEIGHTS)
    except (ValueError, KeyError, FileNotFoundError) as error:
        parser.error(str(error.args[0]))
    histograms: Histograms = defaultdict(lambda: {side: LossHistogram() for side in SIDES})
    names = MetadataCatalog.get(dataset).get("thing_classes") or [
        str(i) for i in range(read_settings(cfg).num_classes)
    ]
    with tqdm(total=len(records), unit="image") as progress:
        for inputs in _read_batches(records, cfg, args.batch):
            add_batch(histograms, model, losses, inputs, by=args.by, class_names=names)
            progress.update(len(inputs))
    _write(histograms, args, dataset, len(records), cfg)
    return 0


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="focal-det loss-cdf", description=__doc__)
    parser.add_argument("--config-file", required=True, help="config of the model")
    parser.add_argument("--weights", help="checkpoint (default: MODEL.WEIGHTS of the config)")
    parser.add_argument(
        "--dataset",
        help="a registered data set with annotations (default: the first of DATASETS.TEST)",
    )
    parser.add_argument(
        "--gammas",
        type=float,
        nargs="+",
        default=[],
        help="focal losses to draw (default: 0 0.5 1 2)",
    )
    what = "further losses, NAME or NAME:ARGUMENT=VALUE,... as for `focal-det curves`"
    parser.add_argument("--losses", nargs="+", default=[], metavar="LOSS", help=what)
    what = "one curve per class or object size (of positives), or per pyramid level"
    parser.add_argument("--by", choices=["class", "level", "size"], help=what)
    parser.add_argument(
        "--images", type=int, default=0, help="take so many, at even distances (default: all)"
    )
    parser.add_argument(
        "--batch", type=int, default=4, help="images at a time (default: %(default)s)"
    )
    parser.add_argument(
        "--write",
        type=Path,
        default=Path("output/loss_cdf.png"),
        help="picture, with a json (default: %(default)s)",
    )
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="config keys and values, last")
    return parser


def _load_config(args: argparse.Namespace) -> CfgNode:
    cfg = load_config(args.config_file, args.opts)
    cfg.MODEL.WEIGHTS = args.weights or cfg.MODEL.WEIGHTS
    if not cfg.MODEL.WEIGHTS:
        raise ValueError(
            "there is nothing to see in a model that is not trained; give its checkpoint with --weights"
        )
    if "://" not in cfg.MODEL.WEIGHTS and not Path(cfg.MODEL.WEIGHTS).is_file():
        raise ValueError(f"--weights {cfg.MODEL.WEIGHTS} does not exist")
    if FocalRetinaNet.__name__ != cfg.MODEL.META_ARCHITECTURE:
        raise ValueError(
            f"MODEL.META_ARCHITECTURE must be FocalRetinaNet, got {cfg.MODEL.META_ARCHITECTURE}"
        )
    return cfg


def _build_losses(args: argparse.Namespace, cfg: CfgNode) -> dict[str, PointwiseClsLoss]:
    """The losses by the name of their curve."""
    num_classes = read_settings(cfg).num_classes
    gammas = args.gammas or ([] if args.losses else [0.0, 0.5, 1.0, 2.0])
    specs = {
        f"gamma {x:g}": f"FocalLoss:gamma={x!r},alpha={read_settings(cfg).alpha!r}" for x in gammas
    }
    specs.update({x: x for x in args.losses})
    num_outputs = build_cls_loss(cfg).num_outputs(num_classes)
    losses = {}
    for name, spec in specs.items():
        loss = CLS_LOSS_REGISTRY.build(*parse_loss(spec), num_classes=num_classes)
        if not loss.pointwise:
            raise ValueError(
                f"{spec}: the loss of an anchor depends on the others, so it has none of its own"
            )
        if loss.num_outputs(num_classes) != num_outputs:
            raise ValueError(
                f"{spec}: needs {loss.num_outputs(num_classes)} logits per anchor, the model has {num_outputs}"
            )
        losses[name] = loss.to(cfg.MODEL.DEVICE).eval()
    return losses


def _load_records(cfg: CfgNode, args: argparse.Namespace) -> tuple[list[dict[str, Any]], str]:
    if not (args.dataset or cfg.DATASETS.TEST):
        raise ValueError("the config has no DATASETS.TEST; name a data set with --dataset")
    name = args.dataset or cfg.DATASETS.TEST[0]
    if name not in DatasetCatalog.list():
        raise ValueError(describe_unknown("data set", name, DatasetCatalog.list()))
    records = DatasetCatalog.get(name)
    return sample_evenly(records, args.images), name


def _read_batches(
    records: list[dict[str, Any]], cfg: CfgNode, batch: int
) -> Iterator[list[dict[str, Any]]]:
    """Inputs as in training, with the resizing of the test."""
    resize = ResizeShortestEdge([cfg.INPUT.MIN_SIZE_TEST] * 2, cfg.INPUT.MAX_SIZE_TEST)
    mapper = DatasetMapper(is_train=True, augmentations=[resize], image_format=cfg.INPUT.FORMAT)
    for i in range(0, len(records), batch):
        yield [mapper(x) for x in records[i : i + batch]]


@torch.no_grad()
def add_batch(
    histograms: Histograms,
    model: FocalRetinaNet,
    losses: dict[str, PointwiseClsLoss],
    inputs: list[dict[str, Any]],
    *,
    by: Optional[str] = None,
    class_names: Sequence[str] = (),
) -> None:
    """Add the loss of every anchor of a batch that is not ignored.

    Args:
        histograms: by curve, and side; a curve is named after its loss and, with `by`, its group.
        losses: by the name of their curve.
        inputs: as of Detectron2's DatasetMapper in training.
        by: "class", "level" or "size"; negatives have no class and no size, and stay in one curve.
        class_names: of the K classes.
    """
    sizes, anchors, logits, deltas = model.predict(inputs)
    gt_labels, gt_boxes = model.label_anchors(
        anchors, [x["instances"].to(model.device) for x in inputs]
    )
    deltas = torch.cat(deltas, dim=1)
    all_anchors = Boxes.cat(anchors).tensor
    targets = DenseTargets.build(
        torch.stack(gt_labels),
        torch.stack(gt_boxes),
        model.num_classes,
        needs=frozenset().union(*(loss.needs for loss in losses.values())),
        anchors=all_anchors,
        compute_iou=lambda targets: iou_of_predictions(
            deltas, all_anchors, targets, model.box2box_transform
        ),
    )
    groups, names = (
        _make_groups(by, targets, inputs, sizes, [x.shape[1] for x in logits], class_names)
        if by
        else (None, ())
    )
    masks = {"positive": (targets.gt_labels >= 0) & (targets.gt_labels < model.num_classes)}
    masks["negative"] = targets.gt_labels == model.num_classes
    levels = list(split_levels(logits, targets))
    for name, loss in losses.items():
        values = torch.cat([loss.per_anchor(*level) for level in levels], dim=1)
        for side, mask in masks.items():
            if by is None or (side == "negative" and by != "level"):
                histograms[name][side].add(values[mask])
                continue
            for i, group in enumerate(names):
                histograms[f"{name}, {group}"][side].add(values[mask & (groups == i)])


def _make_groups(
    by: str,
    targets: DenseTargets,
    inputs: list[dict[str, Any]],
    sizes: list[tuple[int, int]],
    anchors_per_level: list[int],
    class_names: Sequence[str],
) -> tuple[Tensor, Sequence[str]]:
    """(N, R) index of the group of each anchor, and the names of the groups."""
    if by == "class":
        return targets.gt_labels, class_names
    if by == "level":
        index = torch.cat([torch.full((n,), i) for i, n in enumerate(anchors_per_level)]).to(
            targets.gt_labels.device
        )
        return index.expand_as(targets.gt_labels), [
            f"P{i + 3}" for i in range(len(anchors_per_level))
        ]
    scales = torch.tensor(
        [x["height"] / size[0] for x, size in zip(inputs, sizes)], device=targets.gt_boxes.device
    )
    area = (targets.gt_boxes[..., 2:] - targets.gt_boxes[..., :2]).prod(dim=2) * scales[
        :, None
    ] ** 2
    bounds = torch.tensor(list(_SIZES.values())[:-1], device=area.device, dtype=area.dtype)
    return torch.bucketize(area, bounds, right=True), list(_SIZES)


def _write(
    histograms: Histograms, args: argparse.Namespace, dataset: str, num_images: int, cfg: CfgNode
) -> None:
    rows = [x for x in summarize(histograms) if x["anchors"]]
    for row in rows:
        one, twenty = (f"{100 * row[f'share_of_hardest_{n}_percent']:.1f} %" for n in (1, 20))
        what = f"the hardest 1 % carry {one} of the loss, the hardest 20 % {twenty}"
        print(
            f"{row['curve']}: of {row['anchors']:,} {row['side']}s {what} (error of the curve below {row['max_error']:.1e})"
        )
    content = {
        "config_file": args.config_file,
        "weights": cfg.MODEL.WEIGHTS,
        "dataset": dataset,
        "images": num_images,
    }
    args.write.parent.mkdir(parents=True, exist_ok=True)
    args.write.with_suffix(".json").write_text(
        json.dumps({**content, "by": args.by, "curves": rows}, indent=1) + "\n"
    )
    draw_loss_cdf(
        histograms,
        f"Cumulative loss of {Path(args.config_file).stem} on {dataset}, {num_images} images",
        [args.write],
    )
    print(f"picture: {args.write}, json: {args.write.with_suffix('.json')}")


if __name__ == "__main__":
    sys.exit(main())
