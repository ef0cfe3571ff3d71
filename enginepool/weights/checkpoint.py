"""A model's weight files, and the digest of everything that its loaded weights depend on."""

from __future__ import annotations

import hashlib
from pathlib import Path

from config.errors import StoreError
from config.model_files import WEIGHTS
from enginepool.messages import ModelSpec


def weight_files(model: ModelSpec) -> list[Path]:
    """The model's weight files, preferring safetensors; empty for dummy weights.

    Raises:
        StoreError: the folder has no weight files.
    """
    if model.weights == "dummy":
        return []
    folder = Path(model.path)
    for pattern in WEIGHTS:
        files = sorted(folder.glob(pattern))
        if files:
            return files
    raise StoreError(f"{model.name}: no weights (*.safetensors) in {folder}")


def digest(model: ModelSpec, *others: str) -> str:
    """A digest of the checkpoint, the dtype and `others`, such as versions, arguments and devices.

    Dummy weights depend on the model's name instead of a checkpoint.

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
    seed = [f"dummy {model.name}"] if model.weights == "dummy" else []
    found.update("\n".join((model.dtype, *seed, *others)).encode())
    return found.hexdigest()
