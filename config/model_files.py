"""What a model has on disk."""

from __future__ import annotations

import json
import stat
from pathlib import Path

from config.registry import Model


def weight_bytes(model: Model) -> int:
    """Bytes of the model's safetensors; 0 where there are none to read."""
    if model.path is None:
        return 0
    try:
        return sum(file.stat().st_size for file in model.path.glob("*.safetensors"))
    except OSError:
        return 0


def fault_of_folder(folder: Path) -> str:
    """Why `folder` is not one; empty if it is."""
    try:
        mode = folder.stat().st_mode
    except OSError as error:
        return f"{folder} ({error.strerror})"
    return "" if stat.S_ISDIR(mode) else f"{folder} (not a folder)"


def fault_of_config(file: Path) -> str:
    """Why `file` is not a model's config.json; empty if it is one."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        return f"{file} ({error.strerror})"
    except (ValueError, RecursionError) as error:
        return f"{file} ({error})"
    return "" if isinstance(content, dict) else f"{file} (not a JSON object)"
