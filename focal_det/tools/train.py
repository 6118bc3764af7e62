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
from torch import multiprocessing

from focal_det.data.catalog import register_datasets
from focal_det.engine.checkpointer import HealthyCheckpointer
from focal_det.engine.step_guard import SickStepError
from focal_det.engine.trainer import Trainer
from focal_det.env import load_config
from focal_det.tools.check import describe_error, print_findings, run_checks

SICK = "sick: "  # is what the last message of a training begins with that the guard has stopped
_CHECKED_IMAGES = 200  # of each data set, before a training


def run(args) -> Optional[dict]:
    """One process of a training or evaluation; returns the metrics."""
    cfg = load_config(args.config_file, args.opts, unsafe_yaml=args.unsafe_yaml)
    register_datasets(cfg.MODEL.FOCAL_DET.DATASETS, source="MODEL.FOCAL_DET.DATASETS")
    is_drawn = cfg.SEED < 0
    if is_drawn:
        cfg.SEED = _get_seed(cfg, args)
    cfg.freeze()
    default_setup(cfg, args)
    log = logging.getLogger(LOGGER_NAME)
    if args.eval_only:
        return _evaluate(cfg, args)
    if is_drawn:
        log.info(f"SEED was not set; this run has {cfg.SEED}, and --resume keeps it")
    for (
        finding
    ) in args.findings:  # once more, where log.txt and the eye have them at the end of the settings
        log.log(
            logging.INFO if finding.startswith("note") else logging.WARNING, f"check: {finding}"
        )
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    results = trainer.train()
    if trainer.checkpointer.sickness:
        raise SickStepError(
            f"the model at the end of the training is sick: {trainer.checkpointer.sickness}"
        )
    return results


def _evaluate(cfg: CfgNode, args) -> dict:
    model = Trainer.build_model(cfg)
    HealthyCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(
        cfg.MODEL.WEIGHTS, resume=args.resume
    )
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def _get_seed(cfg: CfgNode, args) -> int:
    """A seed for a run that has none: another for each run, the same for all processes.

    That of the run in OUTPUT_DIR if this one resumes or evaluates it, as its config.yaml is written anew.
    """
    file = Path(cfg.OUTPUT_DIR) / "config.yaml"
    is_same_run = (args.resume or args.eval_only) and file.is_file()
    before = yaml.safe_load(file.read_text())["SEED"] if is_same_run else -1
    drawn = comm.shared_random_seed()  # by all processes, or they would wait for each other
    return before if before >= 0 or args.eval_only else drawn


def _check(cfg: CfgNode, resume: bool) -> list[str]:
    """Refuse to start what would stop or go wrong later, see `focal-det check`; return what else there is to say."""
    if resume and (Path(cfg.OUTPUT_DIR) / "last_checkpoint").is_file():
        cfg = cfg.clone()
        cfg.MODEL.WEIGHTS = ""  # not read
    findings, _ = run_checks(cfg, images=_CHECKED_IMAGES, is_training=True)
    print_findings(findings)
    if findings.get("error"):
        print(
            "There are errors above, and nothing was trained. To train all the same: --no-check",
            file=sys.stderr,
        )
        raise SystemExit(2)
    return [f"{x.severity}: {x}" for x in findings]


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Entry point; see `--help`."""
    parser = default_argument_parser(
        epilog="Keys of focal_det: MODEL.FOCAL_DET; see focal_det/config.py."
    )
    parser.prog = "focal-det train"
    what = f"start without checking config, annotations and {_CHECKED_IMAGES} images of each data set as `focal-det check` does"
    parser.add_argument("--no-check", action="store_true", help=what)
    parser.add_argument(
        "--unsafe-yaml",
        action="store_true",
        help="let the config run code (!!python/...) when it is read",
    )
    args = parser.parse_args(argv)
    if not args.config_file.endswith((".yaml", ".yml")):
        parser.error(
            f"--config-file must be a .yaml file, got {args.config_file!r}; Lazy .py configs run under Detectron2's "
            "tools/lazyconfig_train_net.py"
        )
    try:
        cfg = load_config(args.config_file, args.opts, unsafe_yaml=args.unsafe_yaml)
        args.findings = [] if args.eval_only or args.no_check else _check(cfg, args.resume)
    except (OSError, KeyError, ValueError, AssertionError) as error:
        parser.error(describe_error(error))
    machines = {
        "num_machines": args.num_machines,
        "machine_rank": args.machine_rank,
        "dist_url": args.dist_url,
    }
    try:
        launch(run, args.num_gpus, **machines, args=(args,))
    except SickStepError as error:
        raise SystemExit(f"{SICK}{error}") from None
    except multiprocessing.ProcessRaisedException as error:  # of one of several processes, as text
        _, is_sick, message = str(error).partition(f"{SickStepError.__name__}: ")
        if not is_sick:
            raise
        raise SystemExit(f"{SICK}{message.rstrip()}") from None


if __name__ == "__main__":
    sys.exit(main())
