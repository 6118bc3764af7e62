"""What `DETECTRON2_ENV_MODULE=focal_det.env` does: any Detectron2 program then knows focal_det.

Detectron2 calls `setup_environment()` while it is being imported, so this module must not import
anything of Detectron2 before the call.
"""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Union

from focal_det.host import require_detectron2

_DETECTRON2_SCRIPTS = ("train_net.py", "lazyconfig_train_net.py", "plain_train_net.py")
# Longer than rank 0 takes to start and to print its message.
_MAX_SECONDS_TO_REFUSE = 60


def setup_environment() -> None:
    """Register focal_det's config node, models, data sets and zoo with Detectron2.

    Reads two environment variables:
        FOCAL_DET_ENV_MODULE: your own environment module (a module name or a .py file with a
            `setup_environment`), run first.
        FOCAL_DET_DATASETS: a yaml file of data sets to register, see `focal_det.data.catalog`.

    Raises:
        SystemExit: torchrun has started a script of Detectron2.
    """
    _refuse_independent_runs()
    require_detectron2()
    from detectron2.config import defaults
    from detectron2.utils.env import setup_custom_environment

    # Before the config node is added, so that the node includes the user's components.
    own_module = os.environ.get("FOCAL_DET_ENV_MODULE")
    if own_module:
        setup_custom_environment(own_module)

    # Its import makes names of the zoo known.
    import focal_det.model_zoo  # noqa: F401
    from focal_det.config import add_focal_det_config
    from focal_det.data.catalog import register_datasets_file, register_digits

    # The node that `get_cfg` copies; Detectron2 has no public way to add a key to it.
    add_focal_det_config(defaults._C)
    register_digits()
    datasets_file = os.environ.get("FOCAL_DET_DATASETS")
    if datasets_file:
        register_datasets_file(datasets_file)


def _refuse_independent_runs() -> None:
    """Refuse a script of Detectron2 under torchrun: each process would be a run of its own.

    All of them would write to the same OUTPUT_DIR, and seem to succeed.
    """
    script = Path(sys.argv[0]).name
    num_processes = os.environ.get("WORLD_SIZE", "1")
    has_torchrun = "TORCHELASTIC_RUN_ID" in os.environ
    if script not in _DETECTRON2_SCRIPTS or not has_torchrun or num_processes == "1":
        return
    if os.environ.get("RANK") != "0":
        # When one process fails, torchrun kills the others: wait, so that rank 0 fails first, with
        # its message.
        time.sleep(_MAX_SECONDS_TO_REFUSE)
        raise SystemExit(2)
    print(
        f"Detectron2's {script} does not support torchrun: its {num_processes} processes would be "
        "separate runs in one OUTPUT_DIR. Start it without torchrun, with --num-gpus and "
        "--num-machines; or start focal_det's script with the same arguments: torchrun ... -m "
        "focal_det.tools.train",
        file=sys.stderr,
    )
    raise SystemExit(2)


def ensure_environment() -> None:
    """Call `setup_environment` in a program that was started without DETECTRON2_ENV_MODULE."""
    require_detectron2()
    from detectron2.config import get_cfg

    if "FOCAL_DET" not in get_cfg().MODEL:
        setup_environment()


def load_config(
    config_file: Union[str, os.PathLike], options: Sequence[str] = (), *, unsafe_yaml: bool = False
):
    """Load a config with focal_det's keys and data sets.

    Args:
        config_file: see `focal_det.config.find_config_file`.
        options: KEY VALUE pairs of a command line.
        unsafe_yaml: let the file, or one it is based on, run code (`!!python/...`), which
            Detectron2's own configs may do anyway.

    Returns:
        Detectron2's CfgNode.

    Raises:
        FileNotFoundError: no such file here or among the shipped configs.
        UnknownNameError: a key that does not exist; names the nearest one.
        ValueError: a Lazy config, a file that runs code when it is read (names file, line and tag)
            or is not yaml, or a value of the wrong type.
    """
    ensure_environment()
    from detectron2.config import get_cfg

    from focal_det.config import find_config_file, merge_file, merge_options

    cfg = get_cfg()
    merge_file(cfg, find_config_file(config_file), unsafe_yaml=unsafe_yaml)
    merge_options(cfg, options)
    return cfg
