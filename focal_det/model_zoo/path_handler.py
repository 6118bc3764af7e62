"""`focal-det://digits/focal_retinanet_tiny` in MODEL.WEIGHTS: a model of the zoo, or part of it."""

import hashlib
from pathlib import Path
from typing import Any

import torch
from detectron2.utils.file_io import PathHandler, PathManager
from iopath.common.file_io import get_cache_dir

from focal_det.checkpoint.weights_file import read_weights
from focal_det.files import open_to_replace

from .model_zoo import get_checkpoint_url, read_zoo


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
        weights: file, URL or name of the zoo, as in MODEL.WEIGHTS.
    """
    prefix = ZooPathHandler.PREFIX
    if weights.startswith(prefix):
        name = weights[len(prefix) :].partition("#")[0].removesuffix(".yaml")
        # An unknown name is not one to download; loading it says what is wrong.
        return bool(read_zoo().get(f"{name}.yaml", {}).get("url"))
    return "://" in weights


def register_zoo() -> None:
    """Make Detectron2 find `focal-det://` names; a second call changes nothing."""
    PathManager.register_handler(ZooPathHandler(), allow_override=True)


def _write_module(file: Path, module: str) -> Path:
    """Keep the parameters and buffers of one module of a checkpoint.

    Raises:
        FileNotFoundError: the model has no such module.
    """
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:8]
    folder = Path(get_cache_dir()) / "focal_det"
    part = folder / f"{file.stem}_{digest}_{module}.pth"
    if part.is_file():
        return part
    model = read_weights(str(file))["model"]
    kept = {k: torch.as_tensor(v) for k, v in model.items() if k.startswith(f"{module}.")}
    if not kept:
        modules = ", ".join(dict.fromkeys(x.partition(".")[0] for x in model))
        raise FileNotFoundError(f"{file.name} has no module {module!r}, only {modules}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open_to_replace(part) as stream:
            torch.save({"model": kept}, stream)
    except OSError as error:
        raise OSError(f"{error}. FVCORE_CACHE can name another folder for {part}") from None
    return part
