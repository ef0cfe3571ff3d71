"""Do kvcached and torch_memory_saver take hold? `python -m gateway.doctor.patches` prints it as JSON.

A process of its own, with the environment of those that serve: both can only be loaded from a process's start.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from config.errors import EngineError


def look() -> dict[str, str]:
    """What is wrong with either; empty text if nothing is. Imports much of SGLang."""
    return {"kvcached": _kvcached(), "saver": _saver()}


def _kvcached() -> str:
    from enginepool.engines.sglang.gpu.upstream import check_kvcached

    try:
        check_kvcached()
    except (EngineError, ImportError) as error:
        return str(error)
    return ""


def _saver() -> str:
    """The loader goes on without a library that it cannot preload."""
    library = os.environ.get("LD_PRELOAD", "").partition(":")[0]
    maps = Path("/proc/self/maps").read_text()
    return "" if library and os.path.realpath(library) in maps else f"{library or 'LD_PRELOAD'} was not loaded"


if __name__ == "__main__":
    print(json.dumps(look()))
