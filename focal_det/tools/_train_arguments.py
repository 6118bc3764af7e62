"""The arguments of `focal-det train` besides those of Detectron2's train_net.py."""

import argparse

from ._launcher import add_launcher_arguments

CHECKED_IMAGES = 200  # of each data set: decoding all of a large one takes minutes
# For those arguments of Detectron2 whose own help is not true here.
_HELP = {
    "config_file": "required: a .yaml file, or the name of a config that ships with focal_det",
    "resume": "continue the run in OUTPUT_DIR; refused if settings changed (see --allow-changes)",
    "eval_only": "evaluate the last checkpoint in OUTPUT_DIR, or MODEL.WEIGHTS, and do not train",
    "opts": "changes to the config as KEY VALUE, last",
}


def add_train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add focal_det's arguments, and correct the help of Detectron2's."""
    flags = {
        "--no-check": f"skip `focal-det check`, here on {CHECKED_IMAGES} images of each data set",
        "--overwrite": "remove the run that OUTPUT_DIR holds, and start anew",
        "--unsafe-yaml": "let the config run code (!!python/...) when it is read",
    }
    for flag, text in flags.items():
        parser.add_argument(flag, action="store_true", help=text)
    parser.add_argument(
        "--allow-changes",
        default="",
        metavar="KEY,...",
        help="let --resume continue although these keys, or all below them, have changed",
    )
    parser.add_argument(
        "--num-processes",
        type=int,
        default=0,
        help="processes on this machine, with --num-gpus 0 (default: one for each GPU)",
    )
    add_launcher_arguments(parser, "the run becomes a job, which is requeued and continues")
    # Detectron2's default port is the same for every run of a user, so two runs would collide.
    parser.set_defaults(dist_url="auto")
    # argparse has no public way to change an argument of another library's parser.
    for action in parser._actions:
        action.help = _HELP.get(action.dest, action.help)
