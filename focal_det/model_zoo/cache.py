"""Files made from others, kept where Detectron2 keeps its downloads."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from iopath.common.file_io import get_cache_dir

from focal_det.files import open_to_replace


def compute_sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def keep_in_cache(name: str, make: Callable[[], dict[str, Any]]) -> Path:
    """A file with what `make` returns, which is called where the file is missing.

    Args:
        name: of the file; its content must be the same for ever.

    Raises:
        OSError: the folder cannot be written; names the variable to change.
    """
    folder = Path(get_cache_dir()) / "focal_det"
    file = folder / name
    if file.is_file():
        return file
    content = make()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with open_to_replace(file) as stream:
            torch.save(content, stream)
    except OSError as error:
        raise OSError(f"{error}. FVCORE_CACHE can name another folder for {file}") from None
    return file
