"""Derived files, cached beside Detectron2's downloads."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from iopath.common.file_io import get_cache_dir

from focal_det.files import open_to_replace

_BLOCK_SIZE = 2**20  # bytes


def compute_sha256(file: Path) -> str:
    """Hexadecimal digest of a file of any size."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(_BLOCK_SIZE):
            digest.update(block)
    return digest.hexdigest()


def get_cache_file(name: str) -> Path:
    return Path(get_cache_dir()) / "focal_det" / name


def keep_in_cache(name: str, make: Callable[[], dict[str, Any]]) -> Path:
    """Path of a cached file; if it is missing, what `make` returns is written.

    Args:
        name: file name; it must identify the content, as a cached file is never written again.
        make: returns what to save.

    Raises:
        OSError: the folder cannot be written; names the variable to change.
    """
    file = get_cache_file(name)
    if file.is_file():
        return file
    content = make()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open_to_replace(file) as stream:
            torch.save(content, stream)
    except OSError as error:
        # All processes of a run come here at the same time, and one of them is enough.
        if file.is_file():
            return file
        raise OSError(f"{error}. FVCORE_CACHE can name another folder for {file}") from None
    return file
