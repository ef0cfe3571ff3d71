"""kvcached has no wheels, and takes torch, a CUDA toolkit and a C++ compiler to build: pip alone cannot install it."""

from __future__ import annotations

import os

from installation.packages import install_pins, is_intact
from installation.places import STAMP, TOOLKIT, VENV
from installation.terminal import say


def build(wanted: dict[str, str]) -> bool:
    """Whether it had to be built. Raises: InstallationError."""
    if all(is_intact(name, version) for name, version in wanted.items()):
        return False
    say("kvcached, built against this torch")
    STAMP.unlink(missing_ok=True)
    path = f"{VENV / 'bin'}:{os.environ.get('PATH', os.defpath)}"  # ninja's
    libraries = f"{TOOLKIT / 'lib64' / 'stubs'}:{os.environ.get('LIBRARY_PATH', '')}".rstrip(":")
    # What pip has kept of an earlier build may be of another torch.
    arguments = ("--no-build-isolation", "--no-cache-dir")
    install_pins(wanted, *arguments, CUDA_HOME=str(TOOLKIT), LIBRARY_PATH=libraries, PATH=path)
    return True
