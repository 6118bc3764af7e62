"""What `DETECTRON2_ENV_MODULE=focal_det.env` does: any program of Detectron2's then knows focal_det.

Detectron2 calls `setup_environment()` while it is being imported, so nothing of it is imported before the call.
"""

import os
from collections.abc import Sequence
from typing import Union


def ensure_environment() -> None:
    """What `setup_environment` does, in a program of ours that was started without DETECTRON2_ENV_MODULE."""
    import focal_det.host  # noqa: F401  (first: says how to get Detectron2)

    from detectron2.config import get_cfg

    if "FOCAL_DET" not in get_cfg().MODEL:
        setup_environment()


def load_config(
    config_file: Union[str, os.PathLike], options: Sequence[str] = (), *, unsafe_yaml: bool = False
):
    """A Detectron2 config with focal_det's keys and data sets, from a yaml file and KEY VALUE pairs.

    Args:
        config_file: see `find_config_file`.
        unsafe_yaml: let the file, or one it is based on, run code (`!!python/...`); Detectron2's own configs may do so anyway.

    Raises:
        FileNotFoundError: no such file here or among the shipped configs.
        KeyError: a key that does not exist; names the nearest one.
        ValueError: a file that runs code when it is read; names file, line and tag.
    """
    ensure_environment()
    from detectron2.config import get_cfg

    from focal_det.config import merge_file, merge_options

    cfg = get_cfg()
    merge_file(cfg, find_config_file(config_file), unsafe_yaml=unsafe_yaml)
    merge_options(cfg, options)
    return cfg


def find_config_file(config_file: Union[str, os.PathLike]) -> str:
    """A config's path: the file itself, or the shipped config of this name if there is no such file.

    Args:
        config_file: a path or URL, or a name such as "digits/focal_retinanet_tiny.yaml".

    Raises:
        FileNotFoundError: neither; names both folders and the nearest shipped config.
    """
    if "://" in str(config_file) or os.path.isfile(config_file):
        return str(config_file)
    from focal_det.model_zoo import get_config_file

    try:
        return get_config_file(str(config_file))
    except FileNotFoundError as error:
        raise FileNotFoundError(
            f"the config {config_file} does not exist (working folder: {os.getcwd()}), "
            f"and focal_det ships none of this name. {error}"
        ) from None


def setup_environment() -> None:
    """Register focal_det's config node, architecture and data sets with Detectron2.

    Two more variables are read here:
        FOCAL_DET_ENV_MODULE: your own environment module (a module name or a .py file with a `setup_environment`), run first.
        FOCAL_DET_DATASETS: a yaml file of data sets to register, see `focal_det.data.catalog`.
    """
    import focal_det.host  # noqa: F401  (first: says how to get Detectron2)

    from detectron2.utils.env import setup_custom_environment

    own_module = os.environ.get("FOCAL_DET_ENV_MODULE")
    if own_module:
        setup_custom_environment(own_module)

    from detectron2.config import defaults

    from focal_det.config import add_focal_det_config
    from focal_det.data.catalog import register_datasets_file, register_digits

    add_focal_det_config(defaults._C)
    register_digits()
    datasets_file = os.environ.get("FOCAL_DET_DATASETS")
    if datasets_file:
        register_datasets_file(datasets_file)
