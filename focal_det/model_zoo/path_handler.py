"""`focal-det://digits/focal_retinanet_tiny` in MODEL.WEIGHTS: a model of the zoo, or part of it."""

from pathlib import Path
from typing import Any

import torch
from detectron2.utils.file_io import PathHandler, PathManager

from focal_det.checkpoint.weights_file import read_weights

from .cache import compute_sha256, keep_in_cache
from .model_zoo import get_checkpoint_url, read_zoo
from .torchvision_weights import TorchvisionPathHandler, is_known, is_on_machine


class ZooPathHandler(PathHandler):
    """Finds the trained model of a config that ships, named by its path without suffix.

    A `#` and the name of a module at the end take that module alone, as in
    `focal-det://digits/focal_retinanet_tiny#backbone`: the heads of a detector that starts from it
    are new. Such a part is kept in the cache of Detectron2's downloads.
    """

    PREFIX = "focal-det://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        """A file on this machine.

        Raises:
            FileNotFoundError: the zoo has no such model, or the model no such module; names those
                there are. Or a file has another hash than recorded.
        """
        name, _, module = path[len(self.PREFIX) :].partition("#")
        try:
            url = get_checkpoint_url(f"{name.removesuffix('.yaml')}.yaml")
        # Detectron2's type for this function; programs that load weights expect an OSError.
        except RuntimeError as error:
            raise FileNotFoundError(str(error)) from None
        file = Path(PathManager.get_local_path(url, force, **kwargs))
        if module:
            file = _write_module(file, module)
        return str(file)

    def _open(self, path: str, mode: str = "r", **kwargs: Any) -> Any:
        if mode not in ("r", "rb"):
            raise ValueError(f"{path} is a model of the zoo: mode {mode!r} must be 'r' or 'rb'")
        return PathManager.open(self._get_local_path(path), mode, **kwargs)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        try:
            return Path(self._get_local_path(path, **kwargs)).is_file()
        except FileNotFoundError:
            return False


def is_download(weights: str) -> bool:
    """Whether weights are not on this machine, as far as their name tells.

    Args:
        weights: file, URL or name of the zoo or of torchvision, as in MODEL.WEIGHTS.
    """
    prefix = ZooPathHandler.PREFIX
    if weights.startswith(prefix):
        name = weights[len(prefix) :].partition("#")[0].removesuffix(".yaml")
        # An unknown name is not one to download; loading it says what is wrong.
        return bool(read_zoo().get(f"{name}.yaml", {}).get("url"))
    if weights.startswith(TorchvisionPathHandler.PREFIX):
        return is_known(weights) and not is_on_machine(weights)
    return "://" in weights


def register_zoo() -> None:
    """Make Detectron2 find names that begin with `focal-det://` or `torchvision://`.

    A second call changes nothing.
    """
    for handler in (ZooPathHandler(), TorchvisionPathHandler()):
        PathManager.register_handler(handler, allow_override=True)


def _write_module(file: Path, module: str) -> Path:
    """Keep the parameters and buffers of one module of a checkpoint.

    Raises:
        FileNotFoundError: the model has no such module.
    """
    digest = compute_sha256(file)[:8]

    def take_module() -> dict[str, Any]:
        model = read_weights(str(file))["model"]
        kept = {k: torch.as_tensor(v) for k, v in model.items() if k.startswith(f"{module}.")}
        if not kept:
            modules = ", ".join(dict.fromkeys(x.partition(".")[0] for x in model))
            raise FileNotFoundError(f"{file.name} has no module {module!r}, only {modules}")
        return {"model": kept}

    return keep_in_cache(f"{file.stem}_{digest}_{module}.pth", take_module)
