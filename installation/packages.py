"""Pinned packages: those that are missing, of another version or damaged are installed."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Sequence
from importlib import invalidate_caches
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from installation.places import STAMP, VENV
from installation.terminal import InstallationError, pip, say

_PIN = re.compile(r"([A-Za-z0-9._-]+)==([^\s;#]+)")
_ROUNDS = 2
"""Packages of NVIDIA's share folders: replacing one can take a file of another along, which the second round mends."""


def pins(path: Path) -> dict[str, str]:
    """Names and versions in a file of requirements."""
    found = [_PIN.match(line) for line in path.read_text().splitlines()]
    return {match[1]: match[2] for match in found if match}


def install(wanted: dict[str, str]) -> bool:
    """Whether anything had to be done.

    Raises:
        InstallationError: pip failed, or what it installed is damaged again.
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
    raise InstallationError(f"damaged once more after their installation: {', '.join(missing)}")


def install_pins(wanted: dict[str, str], *arguments: str, **environment: str) -> None:
    """By pip, whatever is there of them. Raises: InstallationError."""
    for name in wanted:
        _forget_if_cut_off(name)
    requirements = [f"{name}=={version}" for name, version in wanted.items()]
    pip("install", "--no-deps", "--force-reinstall", *arguments, *requirements, environment=environment)
    invalidate_caches()


def is_intact(name: str, version: str) -> bool:
    """Whether it is installed in that version, and to the last file."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return False
    # A build for the CPU, 2.11.0+cpu, is the pinned version too, as pip sees it.
    return found.version == version and _was_finished(found) and not _missing_files(found)


def _not_intact(wanted: dict[str, str]) -> Sequence[str]:
    return [name for name, version in wanted.items() if not is_intact(name, version)]


def _was_finished(found: Distribution) -> bool:
    """pip writes RECORD last of all."""
    return found.read_text("RECORD") is not None


def _missing_files(found: Distribution) -> bool:
    return any(not os.path.lexists(str(file.locate())) for file in found.files or () if file.suffix != ".pyc")


def _forget_if_cut_off(name: str) -> None:
    """pip refuses to replace what has no RECORD."""
    try:
        found = distribution(name)
    except PackageNotFoundError:
        return
    if not _was_finished(found):
        for folder in Path(str(found.locate_file(""))).glob(f"*-{found.version}.dist-info"):
            if _normal(folder.name.partition("-")[0]) == _normal(name) and folder.is_relative_to(VENV):
                shutil.rmtree(folder)


def _normal(name: str) -> str:
    """Spelt as all spellings of it are compared (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()
