"""Installs pinned packages that are missing, damaged or of the wrong version."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from importlib import invalidate_caches
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from installation.paths import STAMP, VENV
from installation.terminal import InstallationError, pip, say

_PIN = re.compile(r"([A-Za-z0-9._-]+)==([^\s;#]+)")
_ROUNDS = 2
"""NVIDIA's packages share folders, so replacing one can delete files of another; the second round repairs that."""


def pins(path: Path) -> dict[str, str]:
    """Names and versions pinned in a requirements file."""
    found = [_PIN.match(line) for line in path.read_text().splitlines()]
    return {match[1]: match[2] for match in found if match}


def install(wanted: dict[str, str]) -> bool:
    """Install what is missing or damaged; returns whether anything had to be installed.

    Raises:
        InstallationError: pip failed, or a package is still damaged after it was reinstalled.
    """
    missing = _not_intact(wanted)
    say(f"packages: {len(wanted)} pinned, {len(missing)} to install")
    if not missing:
        return False
    STAMP.unlink(missing_ok=True)
    for _ in range(_ROUNDS):
        install_pins({name: wanted[name] for name in missing})
        if not (missing := _not_intact(wanted)):
            return True
    raise InstallationError(f"still damaged after being reinstalled: {', '.join(missing)}")


def install_pins(wanted: dict[str, str], *arguments: str, **environment: str) -> None:
    """Have pip (re)install these versions, whatever is installed now. Raises: InstallationError."""
    for name in wanted:
        _forget_if_cut_off(name)
    requirements = [f"{name}=={version}" for name, version in wanted.items()]
    pip("install", "--no-deps", "--force-reinstall", *arguments, *requirements, environment=environment)
    invalidate_caches()


def is_intact(name: str, version: str) -> bool:
    """Whether the package is installed in that version, with all its files."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return False
    # Compared as text: to pip, a CPU build such as 2.11.0+cpu would satisfy the pin too.
    return found.version == version and _was_finished(found) and not _missing_files(found)


def _not_intact(wanted: dict[str, str]) -> Sequence[str]:
    return [name for name, version in wanted.items() if not is_intact(name, version)]


def _was_finished(found: Distribution) -> bool:
    """pip writes RECORD last, so a package without one was not installed completely."""
    return found.read_text("RECORD") is not None


def _missing_files(found: Distribution) -> bool:
    return any(not os.path.lexists(str(file.locate())) for file in found.files or () if file.suffix != ".pyc")


def _forget_if_cut_off(name: str) -> None:
    """Remove a half-installed package's metadata: pip refuses to replace a package without RECORD."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return
    if not _was_finished(found):
        for folder in Path(str(found.locate_file(""))).glob(f"*-{found.version}.dist-info"):
            if _normal(folder.name.partition("-")[0]) == _normal(name) and folder.is_relative_to(VENV):
                shutil.rmtree(folder)


def _normal(name: str) -> str:
    """The normalised name, by which spellings are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
