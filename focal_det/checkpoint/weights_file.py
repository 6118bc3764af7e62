"""Reading files of weights without running code, and saying what a file is that holds none."""

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

# All that a pickle of arrays by name needs: those of Detectron2's and Detectron's model zoos are such.
_ALLOWED = {
    ("_codecs", "encode"),
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *(
        (f"numpy.{core}.{name}", function)
        for core in ("core", "_core")
        for name, function in (
            ("multiarray", "_reconstruct"),
            ("multiarray", "scalar"),
            ("numeric", "_frombuffer"),
        )
    ),
}
_SAFE_FORM = (
    "torch.save({'model': model.state_dict()}, 'weights.pth') makes a file that can be read"
)
_MAX_LINE = 200  # characters of another library's message


class WeightsError(ValueError):
    """A file that holds no weights, or weights that do not fit the model."""


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays in plain containers; whatever else a pickle may call is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise WeightsError(
                f"reading it would call {module}.{name}, and a pickle can run any code that way; "
                f"only numpy arrays are read from .pkl files. {_SAFE_FORM}"
            )
        return super().find_class(module, name)


def read_weights(file: str) -> dict[str, Any]:
    """Read a checkpoint of Detectron2, a state dict, or a file of a model zoo (.pkl, .pyth).

    Returns:
        "model", tensors or arrays by name; for files of model zoos also what Detectron2 needs to
        convert the names; of a checkpoint, all that it holds besides.

    Raises:
        WeightsError: the file holds something else, is damaged, or would run code when read. The
            message does not name the file.
    """
    kind = _describe_kind(Path(file))
    if kind:
        raise WeightsError(kind)
    if file.endswith(".pkl"):
        content = _from_model_zoo(_read_pickle(file))
    elif file.endswith(".pyth"):
        content = _from_pycls(_read_torch(file))
    else:
        content = _read_torch(file)
        content = content if "model" in content else {"model": content}
    if not isinstance(content["model"], dict):
        raise WeightsError(f"its 'model' is a {type(content['model']).__name__}, not a mapping")
    wrong = [k for k, v in content["model"].items() if not hasattr(v, "shape")]
    if wrong or not content["model"]:
        raise WeightsError(
            f"it holds no tensors by name: {', '.join(map(str, wrong[:3])) or 'empty'}"
        )
    return content


def _describe_kind(file: Path) -> str:
    """What a file is that cannot hold weights, seen from its first bytes; empty if it may."""
    with open(file, "rb") as stream:
        start = stream.read(512)
    if not start:
        return "it is empty (0 bytes)"
    text = start.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is an HTML page, such as a server sends in place of a file: download it again"
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer, not the file itself: run `git lfs pull`"
    # Protocol 0 of pickle, of old model zoos, is printable too; it does not decode to words.
    is_text = all(x in b"\t\n\r" or 32 <= x < 127 for x in start)
    if is_text and not file.name.endswith(".pkl"):
        return f"it is a text file that begins with {start[:40].decode()!r}"
    return ""


def _read_pickle(file: str) -> dict[str, Any]:
    try:
        with open(file, "rb") as stream:
            content = _ArrayUnpickler(stream, encoding="latin1").load()
    except WeightsError:
        raise
    except Exception as error:  # a damaged pickle raises whatever its bytes happen to mean
        raise WeightsError(_describe_damage(error)) from None
    return _require_mapping(content)


def _read_torch(file: str) -> dict[str, Any]:
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        unsafe = str(error).partition("GLOBAL ")[2].split()
        if not unsafe:
            raise WeightsError(_describe_damage(error)) from None
        raise WeightsError(
            f"it holds objects other than tensors ({unsafe[0]}), which could run code. {_SAFE_FORM}"
        ) from None
    except Exception as error:  # torch raises what its zip reader says, of many types
        raise WeightsError(_describe_damage(error)) from None
    return _require_mapping(content)


def _describe_damage(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return f"it is damaged, cut off or of another kind ({lines[0][:_MAX_LINE]})"


def _require_mapping(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise WeightsError(f"it holds a {type(content).__name__}, not tensors by name")
    return content


def _from_model_zoo(content: dict[str, Any]) -> dict[str, Any]:
    """Of Detectron2's model zoo as it is; of Detectron's and ImageNet's with what they need."""
    if "model" in content and "__author__" in content:
        return content
    arrays = content.get("blobs", content)
    model = {k: v for k, v in arrays.items() if not k.endswith("_momentum")}
    return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}


def _from_pycls(content: dict[str, Any]) -> dict[str, Any]:
    if "model_state" not in content:
        raise WeightsError("it has no 'model_state', which .pyth files of pycls have")
    state = content["model_state"]
    model = OrderedDict((k, v) for k, v in state.items() if not k.endswith("num_batches_tracked"))
    return {"model": model, "__author__": "pycls", "matching_heuristics": True}
