"""Checks for files that pip does not track, without which serving fails to start or silently lacks elastic KV cache."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

from installation.paths import PROJECT, PYTHON, TOOLKIT
from installation.terminal import InstallationError

_SAVER = "from enginepool.host.gpu_environment import saver_library; print(saver_library())"


def check() -> None:
    """Print where the files are. Raises: InstallationError if one is missing."""
    for path in (_autopatch(), _saver(), TOOLKIT / "bin" / "nvcc"):
        if not path.exists():
            raise InstallationError(f"{path} is missing; remove .venv and run make gpu again")
        print(path, flush=True)


def _autopatch() -> Path:
    """The file that makes kvcached patch SGLang on import."""
    return Path(sysconfig.get_path("purelib"), "kvcached_autopatch.pth")


def _saver() -> Path:
    """The torch_memory_saver library built for torch's CUDA version."""
    found = subprocess.run([str(PYTHON), "-c", _SAVER], cwd=str(PROJECT), text=True, capture_output=True)
    if found.returncode:
        raise InstallationError(found.stderr.strip().splitlines()[-1])
    return Path(found.stdout.strip())
