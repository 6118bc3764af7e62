"""Weights read without running code, and the reasons why a file is refused."""

import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from focal_det.messages import shorten

# Everything that unpickling named numpy arrays calls. The model zoos of Detectron2 and Detectron
# are such pickles. numpy 2 renamed `numpy.core` to `numpy._core`, and files of both are in use.
_ALLOWED = {
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy.core.numeric", "_frombuffer"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.numeric", "_frombuffer"),
}
_SAFE_FORM = (
    "torch.save({'model': model.state_dict()}, 'weights.pth') writes a file that can be read"
)
_MAX_HEADER = 100_000_000  # bytes of a safetensors header, the limit of the format
# `_version` assumed for the modules of a safetensors file, which records none. No module of torch
# or Detectron2 that has weights has a higher one.
_MODULE_VERSION = 3
_MAX_NAMES = 3
_MAX_LINE = 200  # characters of an error message from another library


class WeightsError(ValueError):
    """A file that holds no weights, or weights that do not fit the model."""


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays in plain containers, and refuses all other calls."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise WeightsError(
                f"reading it would call {module}.{name}, and a pickle can run any code that way; "
                f"focal_det reads only numpy arrays from .pkl files. {_SAFE_FORM}"
            )
        return super().find_class(module, name)


def read_weights(file: str) -> dict[str, Any]:
    """Read a checkpoint of Detectron2, a state dict, or a file of a model zoo (.pkl, .pyth).

    A state dict may be a safetensors file, which is recognized by its suffix or its content. That
    format has no checksum of the tensors: a changed byte in a weight is found only if it makes the
    weight non-finite, and a changed letter of a name gives another name. `torch.save` writes
    checksums, and they are compared.

    Returns:
        "model", tensors or arrays by name; for a model zoo also the entries that let Detectron2
        convert the names; for a checkpoint also its other entries.

    Raises:
        OSError: the file cannot be opened.
        WeightsError: the file holds something else, is damaged, or would run code when read. The
            message does not name the file, because callers know what it is for.
    """
    kind = _describe_kind(Path(file))
    if kind:
        raise WeightsError(kind)
    if file.endswith(".safetensors") or _is_safetensors(file):
        content: dict[str, Any] = {"model": _read_safetensors(file)}
    elif file.endswith(".pkl"):
        content = _from_model_zoo(_read_pickle(file))
    elif file.endswith(".pyth"):
        content = _from_pycls(_read_torch(file))
    else:
        content = _read_torch(file)
        if "model" not in content:  # a plain state dict
            content = {"model": content}
    if not isinstance(content["model"], dict):
        raise WeightsError(f"its 'model' is a {type(content['model']).__name__}, not a mapping")
    others = [str(k) for k, v in content["model"].items() if not hasattr(v, "shape")]
    if others or not content["model"]:
        raise WeightsError(f"it holds no tensors by name: {', '.join(others[:3]) or 'empty'}")
    return content


def refuse_nonfinite(model: dict[str, Any]) -> None:
    """Refuse weights with NaN or infinity.

    Args:
        model: tensors or arrays by name.

    Raises:
        WeightsError: there are such weights; names the first ones.
    """
    # Detectron2's .pkl files hold numpy arrays.
    wrong = [k for k, v in model.items() if not _is_finite(torch.as_tensor(v))]
    if wrong:
        raise WeightsError(
            f"{len(wrong)} of its tensors contain NaN or infinity: {shorten(wrong, _MAX_NAMES)}. "
            "Take a checkpoint from before the run diverged"
        )


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point():
        return True
    if tensor.itemsize == 1:  # torch has no `isfinite` for most types of 8 bits
        tensor = tensor.float()
    return bool(tensor.isfinite().all())


def _describe_kind(file: Path) -> str:
    """Why a file cannot hold weights, judged by its first bytes; empty if it may."""
    with open(file, "rb") as stream:
        start = stream.read(512)
    if not start:
        return "it is empty (0 bytes)"
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is an HTML page, which servers send in place of a file: download it again"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself: run `git lfs pull`"
    # Old model zoos use protocol 0 of pickle, which is printable as well.
    is_text = all(x in b"\t\n\r" or 32 <= x < 127 for x in start)
    if is_text and not file.name.endswith(".pkl"):
        return f"it is a text file that begins with {start[:40].decode()!r}"
    return ""


def _is_safetensors(file: str) -> bool:
    """Whether a file begins like a safetensors file: the length of a header, then JSON."""
    with open(file, "rb") as stream:
        start = stream.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= _MAX_HEADER


def _read_safetensors(file: str) -> dict[str, Tensor]:
    # Not mapped into memory: if a mapped file is cut off while it is read, the process is killed.
    data = Path(file).read_bytes()
    try:
        model = OrderedDict(load_safetensors(data))
    except Exception as error:  # from the library, or from torch for a dtype it lacks
        raise WeightsError(_describe_damage(error)) from None
    # torch and Detectron2 treat weights without versions as old ones, and fill in missing norm
    # statistics, which would hide a damaged name.
    modules = {name.rpartition(".")[0] for name in model}
    versions = {x: {"version": _MODULE_VERSION} for x in modules}
    model._metadata = versions  # type: ignore[attr-defined]  # as torch's own state dicts have
    return model


def _read_pickle(file: str) -> dict[str, Any]:
    try:
        with open(file, "rb") as stream:
            content = _ArrayUnpickler(stream, encoding="latin1").load()
    except WeightsError:
        raise
    except Exception as error:  # a damaged pickle can raise errors of any type
        raise WeightsError(_describe_damage(error)) from None
    return _require_mapping(content)


def _read_torch(file: str) -> dict[str, Any]:
    _check_archive(file)
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = str(error).partition("GLOBAL ")[2].split()
        if not unsafe:
            raise WeightsError(_describe_damage(error)) from None
        raise WeightsError(
            f"it holds objects other than tensors ({unsafe[0]}), which could run code. {_SAFE_FORM}"
        ) from None
    except Exception as error:  # torch raises errors of many types
        raise WeightsError(_describe_damage(error)) from None
    return _require_mapping(content)


def _check_archive(file: str) -> None:
    """Refuse a zip file with a changed byte, or one that would grow when it is read.

    torch reads damaged weights without complaint: it does not compare the checksums that it saves.
    Files of torch before 1.6 are not zip files, and have no checksums.
    """
    try:
        if not zipfile.is_zipfile(file):
            return
        with zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            # torch.save compresses nothing; compressed, a few bytes can hold gigabytes of zeros.
            is_packed = any(x.compress_type != zipfile.ZIP_STORED for x in members)
            is_packed |= sum(x.file_size for x in members) > Path(file).stat().st_size
            damaged = None if is_packed else archive.testzip()
    except Exception as error:  # a damaged zip index can raise errors of any type
        raise WeightsError(_describe_damage(error)) from None
    if is_packed:
        raise WeightsError(
            f"it is compressed, which torch.save never does: it could fill the memory. {_SAFE_FORM}"
        )
    if damaged is not None:
        raise WeightsError(
            f"it is damaged: the checksum of {damaged} is wrong. Download or copy "
            "it again; if it was saved without checksums (torch.serialization.set_crc32_options), "
            "save it again with them"
        )


def _describe_damage(error: Exception) -> str:
    # The rest of torch's message is a page about `weights_only`.
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"it is damaged, cut off or of another kind ({lines[0][:_MAX_LINE]})"


def _require_mapping(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise WeightsError(f"it holds a {type(content).__name__}, not tensors by name")
    return content


def _from_model_zoo(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a .pkl file, with the entries that let Detectron2 convert its names."""
    # Files of Detectron2's own zoo have them.
    if "model" in content and "__author__" in content:
        return content
    # Detectron keeps its arrays in "blobs", ImageNet models at the top level.
    arrays = content.get("blobs", content)
    model = {k: v for k, v in arrays.items() if not k.endswith("_momentum")}
    return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}


def _from_pycls(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a .pyth file, with the entries that let Detectron2 convert its names."""
    if "model_state" not in content:
        raise WeightsError("it has no 'model_state', which the .pyth files of pycls have")
    state = content["model_state"]
    model = OrderedDict((k, v) for k, v in state.items() if not k.endswith("num_batches_tracked"))
    return {"model": model, "__author__": "pycls", "matching_heuristics": True}
