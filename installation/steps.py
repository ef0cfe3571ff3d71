"""The installation steps. Each skips what is already done, so an interrupted installation can simply be rerun."""

from __future__ import annotations

from installation import complete, kvcached, packages, toolkit
from installation.paths import KVCACHED, PINS, PROJECT, STAMP
from installation.terminal import pip, say


def install() -> None:
    """Run all steps that are still needed.

    Raises:
        InstallationError: a step failed; its output is on the terminal.
    """
    changed = packages.install(packages.pins(PINS))
    toolkit.make()
    changed |= kvcached.build(packages.pins(KVCACHED))
    if changed or _prism_is_stale():
        say("Prism itself, in editable mode")
        pip("install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", str(PROJECT))
        say("dependencies between packages")
        pip("check")
    say("required files")
    complete.check()
    STAMP.touch()


def _prism_is_stale() -> bool:
    return not STAMP.exists() or STAMP.stat().st_mtime < (PROJECT / "pyproject.toml").stat().st_mtime
