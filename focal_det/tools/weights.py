"""Class weights: alpha and pi per class from the training set, written as numbers into a config, with a picture of them."""

import argparse
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from detectron2.config import CfgNode

from focal_det.config import find_config_file
from focal_det.data.catalog import sample_evenly
from focal_det.env import load_config
from focal_det.host import LOGGER_NAME
from focal_det.imbalance.anchors import AnchorFit, build_anchor_setup, measure_anchors
from focal_det.imbalance.class_weights import (
    WEIGHT_METHODS,
    ClassWeights,
    compute_class_alphas,
    compute_class_priors,
    count_objects,
    get_weight_values,
    round_weight,
)
from focal_det.imbalance.config_file import to_command_line, warn_unread, write_config
from focal_det.imbalance.describe import describe_imbalance
from focal_det.imbalance.read import get_class_names, get_middle_size, read_training_set
from focal_det.modeling.build import read_settings
from focal_det.report.class_weights import draw_class_weights

_FIRST_LINE = "Class weights of"
_MAX_ROWS = 40  # of more classes, the terminal shows the most and the least frequent


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Entry point; see `--help`."""
    argv = list(sys.argv[1:] if argv is None else argv)
    args = _parse(argv)
    cfg = load_config(args.config_file, args.opts)
    records = read_training_set(cfg)
    class_names = get_class_names(cfg)
    counts = count_objects(records, len(class_names))
    scalar_alpha = read_settings(cfg).alpha
    alpha_args = {"mean": scalar_alpha, "max_alpha": args.max_alpha, "beta": args.beta}
    alphas = {
        method: compute_class_alphas(counts, method=method, **alpha_args)
        for method in WEIGHT_METHODS
    }
    sample, size = sample_evenly(records, args.images), get_middle_size(cfg)
    fit = measure_anchors(sample, build_anchor_setup(cfg), progress="positives per anchor")
    priors = compute_class_priors(fit.positives, fit.num_anchors)
    scalar_prior = read_settings(cfg).prior_prob
    weights = ClassWeights(
        class_names, counts, alphas, args.method, priors, scalar_alpha, scalar_prior
    )
    _warn(cfg, weights, fit)

    title = f"{' + '.join(cfg.DATASETS.TRAIN)}: {len(records)} images, {counts.sum()} objects, {describe_imbalance(weights)}"
    beta = f", beta {args.beta:g}" if args.method == "effective" else ""
    side = f"shorter side {size} px" if size else "not resized"
    how = [
        f"alpha: {args.method}{beta}; mean over the objects {scalar_alpha:g} (FOCAL_LOSS_ALPHA), none above {args.max_alpha:g}",
        f"pi: positives per anchor; {len(sample)} images, {side}, {fit.num_anchors / len(sample):.0f} anchors per image",
    ]
    table, command = _make_table(weights), to_command_line(["focal-det", "weights", *argv])
    values = get_weight_values(weights, args.max_alpha)
    header = [f"{_FIRST_LINE} {title}", *how, f"Made by: {command}", "", *table]
    write_config(args.write, args.config_file, cfg, args.opts, values, header)
    picture = args.write.with_suffix(".png")
    draw_class_weights(weights, picture, title=title)
    print(
        "\n".join(
            [title, *how, "", *_shorten(table), "", f"config:  {args.write}", f"picture: {picture}"]
        )
    )
    output_dir = f"{cfg.OUTPUT_DIR.rstrip('/')}_{args.write.stem}"
    command = ["focal-det", "train", "--config-file", str(args.write), "OUTPUT_DIR", output_dir]
    print(f"train:   {to_command_line(command)}")
    return 0


def _parse(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="focal-det weights",
        description=__doc__,
        usage="%(prog)s --config-file X --write Y.yaml [options] [KEY VALUE ...]",
    )
    option = parser.add_argument
    option(
        "--config-file",
        type=Path,
        required=True,
        metavar="X",
        help="config whose training set is read",
    )
    option(
        "--write",
        type=Path,
        required=True,
        metavar="Y.yaml",
        help="config to write, based on X; the picture is Y.png",
    )
    option(
        "--method",
        choices=WEIGHT_METHODS,
        default="sqrt",
        help="alpha as 1/n, 1/sqrt(n), 1/E_n (default: %(default)s)",
    )
    option(
        "--beta",
        type=float,
        default=0.999,
        help="of the effective number E_n, in [0, 1) (default: %(default)s)",
    )
    option(
        "--max-alpha",
        type=float,
        default=0.95,
        help="no class has a larger alpha (default: %(default)s)",
    )
    option(
        "--images",
        type=int,
        default=1000,
        help="images that pi is counted in; 0 is all (default: %(default)s)",
    )
    option(
        "opts",
        nargs=argparse.REMAINDER,
        metavar="KEY VALUE",
        help="changes to X, written into Y.yaml as well",
    )
    args = parser.parse_args(argv)
    if args.config_file.suffix not in (".yaml", ".yml"):
        parser.error(f"--config-file must be a .yaml file, got {args.config_file}")
    try:
        args.config_file = Path(find_config_file(args.config_file))
    except FileNotFoundError as error:
        parser.error(f"--config-file: {error}")
    if args.write.suffix not in (".yaml", ".yml"):
        parser.error(f"--write must be a .yaml file, got {args.write}")
    if args.write.exists() and not args.write.read_text().startswith(f"# {_FIRST_LINE}"):
        parser.error(
            f"--write {args.write} exists and is not from this program; remove it or choose another name"
        )
    if args.write.resolve() in _find_bases(args.config_file):
        parser.error(
            f"--write {args.write} is --config-file or one of its bases; choose another name"
        )
    if args.images < 0:
        parser.error(f"--images must be >= 0, got {args.images}")
    return args


def _find_bases(config_file: Path) -> list[Path]:
    """The config file and those that it is based on, as far as they are files here."""
    files = [config_file.resolve()]
    while files[-1].is_file():
        base = re.search(r"^_BASE_:\s*[\"']?([^\"'\s]+)", files[-1].read_text(), re.MULTILINE)
        if base is None or (files[-1].parent / base.group(1)).resolve() in files:
            break
        files.append((files[-1].parent / base.group(1)).resolve())
    return files


def _warn(cfg: CfgNode, weights: ClassWeights, fit: AnchorFit) -> None:
    """Name the classes whose numbers are not measured, and what of the written config is not read."""
    warn = logging.getLogger(LOGGER_NAME).warning
    for values, message in (
        (weights.counts, "without objects, weighted like one with a single object"),
        (
            fit.positives,
            f"without a positive anchor in the images looked at (--images), with pi = 1 / {fit.num_anchors}",
        ),
    ):
        names = [name for name, value in zip(weights.labels, values) if value == 0]
        if names:
            warn(f"Classes {message}: {', '.join(names)}")
    warn_unread(cfg)
    if cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler":
        warn(
            "DATALOADER.SAMPLER_TRAIN repeats images of rare classes; the counts are those of the data set, without repeats"
        )


def _make_table(weights: ClassWeights) -> list[str]:
    """A line of column names, then one per class by falling number of objects."""
    width = max(5, *(len(x) for x in weights.labels))
    lines = [
        f"{'id':>4}  {'class':<{width}}  {'objects':>8}  {'share':>8}  {'alpha':>8}  {'pi':>10}"
    ]
    for i in weights.order:
        count, alpha = weights.counts[i], weights.alphas[weights.method][i]
        share = 100 * count / weights.counts.sum()
        prior = round_weight(weights.priors[i])
        numbers = f"{count:>8}  {share:>6.2f} %  {round_weight(alpha):>8}  {prior:>10}"
        lines.append(f"{i:>4}  {weights.labels[i]:<{width}}  {numbers}")
    return lines


def _shorten(table: list[str]) -> list[str]:
    if len(table) <= _MAX_ROWS + 1:
        return table
    half = _MAX_ROWS // 2
    return [
        *table[: half + 1],
        f"      ... {len(table) - 1 - 2 * half} more, see the written config",
        *table[-half:],
    ]


if __name__ == "__main__":
    sys.exit(main())
