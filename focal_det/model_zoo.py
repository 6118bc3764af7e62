"""The configs that ship with focal_det."""

from pathlib import Path

from focal_det.registry import describe_unknown

_PACKAGE = Path(__file__).parent
# Installed from a wheel the configs are in the package; in a checkout they are beside it.
_CONFIGS = next((x for x in (_PACKAGE / "configs", _PACKAGE.parent / "configs") if x.is_dir()), _PACKAGE / "configs")


def get_config_file(config_path: str) -> str:
    """Absolute path of a shipped config.

    Args:
        config_path: relative to `configs/`, such as "COCO-Detection/focal_retinanet_R_50_FPN_1x.yaml".

    Raises:
        FileNotFoundError: no such config; names the nearest one.
    """
    file = _CONFIGS / config_path
    if not file.is_file():
        known = [str(x.relative_to(_CONFIGS)) for pattern in ("*.yaml", "*.py") for x in _CONFIGS.rglob(pattern)]
        raise FileNotFoundError(describe_unknown("config", config_path, known))
    return str(file)
