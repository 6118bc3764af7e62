"""What `DETECTRON2_ENV_MODULE=focal_det.env` does: any Detectron2 program then knows focal_det.

Detectron2 calls `setup_environment()` while it is being imported, so this module must not import
anything of Detectron2 before the call.
"""

import os
from collections.abc import Sequence
from typing import Union

from focal_det.host import require_detectron2


def setup_environment() -> None:
    """Register focal_det's config node, architecture and data sets with Detectron2.

    Reads two environment variables:
        FOCAL_DET_ENV_MODULE: your own environment module (a module name or a .py file with a
            `setup_environment`), run first.
        FOCAL_DET_DATASETS: a yaml file of data sets to register, see `focal_det.data.catalog`.
    """
    require_detectron2()
    from detectron2.config import defaults
    from detectron2.utils.env import setup_custom_environment

    # Before the config is built, so that it has the components registered there.
    own_module = os.environ.get("FOCAL_DET_ENV_MODULE")
    if own_module:
        setup_custom_environment(own_module)

    from focal_det.config import add_focal_det_config
    from focal_det.data.catalog import register_datasets_file, register_digits

    # The node that `get_cfg` copies; Detectron2 has no public way to add a key to it.
    add_focal_det_config(defaults._C)
    register_digits()
    datasets_file = os.environ.get("FOCAL_DET_DATASETS")
    if datasets_file:
        register_datasets_file(datasets_file)


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
