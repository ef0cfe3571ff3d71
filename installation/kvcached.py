"""Builds kvcached, which has no wheels: its build needs torch, a CUDA toolkit and a C++ compiler."""

from __future__ import annotations

import os

from installation.packages import install_pins, is_intact
from installation.paths import STAMP, TOOLKIT, VENV
from installation.terminal import say


def build(wanted: dict[str, str]) -> bool:
    """Build kvcached if needed; returns whether it had to be built. Raises: InstallationError."""
    if all(is_intact(name, version) for name, version in wanted.items()):
        return False
    say("kvcached, built against the installed torch")
    STAMP.unlink(missing_ok=True)
    path = f"{VENV / 'bin'}:{os.environ.get('PATH', os.defpath)}"  # the build finds ninja there
    libraries = f"{TOOLKIT / 'lib64' / 'stubs'}:{os.environ.get('LIBRARY_PATH', '')}".rstrip(":")
    # A wheel in pip's cache may have been built against another torch.
    arguments = ("--no-build-isolation", "--no-cache-dir")
    install_pins(wanted, *arguments, CUDA_HOME=str(TOOLKIT), LIBRARY_PATH=libraries, PATH=path)
    return True
