"""What `DETECTRON2_ENV_MODULE=focal_det.env` does: any program of Detectron2's then knows focal_det.

Detectron2 calls `setup_environment()` while it is being imported, so nothing of it is imported before the call.
"""

import os


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
