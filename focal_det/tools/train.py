"""Train and evaluate: the flags of Detectron2's tools/train_net.py, for installs that do not have that file."""

import logging
import sys
from collections.abc import Sequence
from typing import Optional

from focal_det.host import LOGGER_NAME

from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine import DefaultTrainer, default_argument_parser, default_setup, launch
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    verify_results,
)
from detectron2.utils import comm

from focal_det.env import load_config
from focal_det.registry import describe_unknown
from focal_det.tools.check import print_findings, run_checks

_CHECKED_IMAGES = 200  # of each data set, before a training


class Trainer(DefaultTrainer):
    """Detectron2's DefaultTrainer with the box evaluators chosen by a data set's `evaluator_type`.

    On a CPU, a seeded run without data workers that is resumed is bit for bit the run that was not interrupted. Detectron2 starts
    again at the first batch; here the batches that have been trained on are drawn again, for the random generators, and left.
    """

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__(cfg)
        if "state_dict" not in vars(DefaultTrainer):  # Detectron2 0.5, whose checkpoints lack the momentum
            self.checkpointer.add_checkpointable("optimizer", self._trainer.optimizer)

    def resume_or_load(self, resume: bool = True) -> None:
        super().resume_or_load(resume=resume)
        if resume and self.start_iter > 0 and self.cfg.SEED >= 0 and self.cfg.DATALOADER.NUM_WORKERS == 0:
            logging.getLogger(LOGGER_NAME).info(f"drawing the batches of the first {self.start_iter} iterations again")
            for _ in range(self.start_iter):
                next(self._trainer._data_loader_iter)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str, output_folder: Optional[str] = None) -> DatasetEvaluator:
        output_folder = output_folder or f"{cfg.OUTPUT_DIR}/inference"
        evaluators = {
            "coco": lambda: COCOEvaluator(dataset_name, output_dir=output_folder),
            "lvis": lambda: LVISEvaluator(dataset_name, output_dir=output_folder),
            "pascal_voc": lambda: PascalVOCDetectionEvaluator(dataset_name),
        }
        kind = MetadataCatalog.get(dataset_name).get("evaluator_type", "")
        if kind not in evaluators:
            raise ValueError(f"Data set {dataset_name}: {describe_unknown('evaluator_type', kind, evaluators)}")
        return evaluators[kind]()


def run(args) -> Optional[dict]:
    """One process of a training or evaluation; returns the metrics."""
    cfg = load_config(args.config_file, args.opts)
    cfg.freeze()
    default_setup(cfg, args)
    if not args.eval_only:
        trainer = Trainer(cfg)
        trainer.resume_or_load(resume=args.resume)
        return trainer.train()
    model = Trainer.build_model(cfg)
    DetectionCheckpointer(model, save_dir=cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=args.resume)
    results = Trainer.test(cfg, model)
    if comm.is_main_process():
        verify_results(cfg, results)
    return results


def _check(cfg: CfgNode) -> None:
    """Refuse to start what would stop or go wrong later; see `focal-det check`."""
    findings = run_checks(cfg, images=_CHECKED_IMAGES)
    print_findings(findings)
    if findings.get("error"):
        raise SystemExit("There are errors above, and nothing was trained. To train all the same: --no-check")


def main(argv: Optional[Sequence[str]] = None) -> None:
    """Entry point; see `--help`."""
    parser = default_argument_parser(epilog="Keys of focal_det: MODEL.FOCAL_DET; see focal_det/config.py.")
    parser.prog = "focal-det train"
    what = f"start without checking config, annotations and {_CHECKED_IMAGES} images of each data set as `focal-det check` does"
    parser.add_argument("--no-check", action="store_true", help=what)
    args = parser.parse_args(argv)
    if not args.config_file.endswith((".yaml", ".yml")):
        parser.error(
            f"--config-file must be a .yaml file, got {args.config_file!r}; Lazy .py configs run under Detectron2's "
            "tools/lazyconfig_train_net.py"
        )
    if not (args.eval_only or args.no_check):
        _check(load_config(args.config_file, args.opts))
    launch(
        run,
        args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        dist_url=args.dist_url,
        args=(args,),
    )


if __name__ == "__main__":
    sys.exit(main())
