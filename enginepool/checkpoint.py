"""A model's folder on disk: its weight files, and the digest of what its loaded weights depend on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from config.errors import StoreError
from config.model_files import WEIGHTS
from enginepool.messages import ModelSpec


def weight_files(model: ModelSpec) -> list[Path]:
    """The files with the weights, safetensors before the older form.

    Raises:
        StoreError: there are none.
    """
    folder = Path(model.path)
    for pattern in WEIGHTS:
        files = sorted(folder.glob(pattern))
        if files:
            return files
    raise StoreError(f"{model.name}: no weights (*.safetensors) in {folder}")


def digest(model: ModelSpec, *others: str) -> str:
    """Changes with the checkpoint, the dtype, and each of `others`: versions, arguments, devices.

    Raises:
        StoreError: the folder cannot be read.
    """
    found = hashlib.sha256()
    try:
        found.update(Path(model.path, "config.json").read_bytes())
        for file in weight_files(model):
            status = file.stat()
            found.update(f"{file.name} {status.st_size} {status.st_mtime_ns}\n".encode())
    except OSError as error:
        raise StoreError(f"{model.name}: {error}") from error
    found.update("\n".join((model.dtype, *others)).encode())
    return found.hexdigest()
