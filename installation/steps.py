"""The steps. Each leaves alone what it finds done, so an installation that was cut off is finished by another run."""

from __future__ import annotations

from installation import complete, kvcached, packages, toolkit
from installation.places import KVCACHED, PINS, PROJECT, STAMP
from installation.terminal import pip, say


def install() -> None:
    """
    Raises:
        InstallationError: a step failed; what it said is on the terminal.
    """
    changed = packages.install(packages.pins(PINS))
    toolkit.make()
    changed |= kvcached.build(packages.pins(KVCACHED))
    if changed or _prism_is_stale():
        say("Prism itself, editable")
        pip("install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", str(PROJECT))
        say("what packages ask of each other")
        pip("check")
    say("what must be in place")
    complete.check()
    STAMP.touch()


def _prism_is_stale() -> bool:
    return not STAMP.exists() or STAMP.stat().st_mtime < (PROJECT / "pyproject.toml").stat().st_mtime
