"""What pip cannot know: the files without which serving fails at its start, or silently without elastic KV cache."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

from installation.places import PROJECT, PYTHON, TOOLKIT
from installation.terminal import InstallationError

_SAVER = "from enginepool.host.gpu_environment import saver_library; print(saver_library())"


def check() -> None:
    """Print where they are. Raises: InstallationError."""
    for path in (_autopatch(), _saver(), TOOLKIT / "bin" / "nvcc"):
        if not path.exists():
            raise InstallationError(f"there is no {path}; remove .venv and run make gpu again")
        print(path, flush=True)


def _autopatch() -> Path:
    """Has kvcached patch SGLang while that is imported."""
    return Path(sysconfig.get_path("purelib"), "kvcached_autopatch.pth")


def _saver() -> Path:
    """torch_memory_saver's library for torch's CUDA."""
    found = subprocess.run([str(PYTHON), "-c", _SAVER], cwd=str(PROJECT), text=True, capture_output=True)
    if found.returncode:
        raise InstallationError(found.stderr.strip().splitlines()[-1])
    return Path(found.stdout.strip())
