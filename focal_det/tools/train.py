"""Train and evaluate: the flags of Detectron2's tools/train_net.py, for installs that do not have that file."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from focal_det.host import LOGGER_NAME

import yaml
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser, default_setup, launch
from detectron2.evaluation import verify_results
from detectron2.utils import comm

from focal_det.engine.checkpointer import HealthyCheckpointer
from focal_det.engine.step_guard import SickStepError
from focal_det.engine.trainer import Trainer
from focal_det.env import load_config
from focal_det.tools.check import print_findings, run_checks

_CHECKED_IMAGES = 200  # of each data set, before a training


def run(args) -> Optional[dict]:
    """One process of a training or evaluation; returns the metrics."""
    cfg = load_config(args.config_file, args.opts, unsafe_yaml=args.unsafe_yaml)
    is_seeded = cfg.SEED >= 0
    if not is_seeded:
        cfg.SEED = _get_seed(cfg, args.resume)
    cfg.freeze()
    default_setup(cfg, args)
    if not is_seeded:
        logging.getLogger(LOGGER_NAME).info(f"SEED was not set; this run has {cfg.SEED}, and --resume keeps it")
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()
    model = Trainer.build_model(cfg)
    HealthyCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def _get_seed(cfg: CfgNode, resume: bool) -> int:
    """A seed for a run that has none: another for each run, the same for all processes, and that of the run that is resumed."""
    file = Path(cfg.OUTPUT_DIR) / "config.yaml"
    before = yaml.safe_load(file.read_text())["SEED"] if resume and file.is_file() else -1
    drawn = comm.shared_random_seed()
    return before if before >= 0 else drawn


def _check(cfg: CfgNode) -> None:
    """Refuse to start what would stop or go wrong later; see `focal-det check`."""
    findings, _ = run_checks(cfg, images=_CHECKED_IMAGES)
    print_findings(findings)
    if findings.get("error"):
        raise SystemExit("There are errors above, and nothing was trained. To train all the same: --no-check")


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Entry point; see `--help`."""
    parser = default_argument_parser(epilog="Keys of focal_det: MODEL.FOCAL_DET; see focal_det/config.py.")
    parser.prog = "focal-det train"
    what = f"start without checking config, annotations and {_CHECKED_IMAGES} images of each data set as `focal-det check` does"
    parser.add_argument("--no-check", action="store_true", help=what)
    parser.add_argument("--unsafe-yaml", action="store_true", help="let the config run code (!!python/...) when it is read")
    args = parser.parse_args(argv)
    if not args.config_file.endswith((".yaml", ".yml")):
        parser.error(
            f"--config-file must be a .yaml file, got {args.config_file!r}; Lazy .py configs run under Detectron2's "
            "tools/lazyconfig_train_net.py"
        )
    try:
        cfg = load_config(args.config_file, args.opts, unsafe_yaml=args.unsafe_yaml)
    except (OSError, KeyError, ValueError, AssertionError) as error:
        parser.error(str(error.args[0] if len(error.args) == 1 else error))
    if not (args.eval_only or args.no_check):
        _check(cfg)
    machines = {"num_machines": args.num_machines, "machine_rank": args.machine_rank, "dist_url": args.dist_url}
    try:
        launch(run, args.num_gpus, **machines, args=(args,))
    except SickStepError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    sys.exit(main())
