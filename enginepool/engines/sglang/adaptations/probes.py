"""Determines whether an adaptation is still needed, as far as the installed packages tell."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from enum import StrEnum

from enginepool.engines.sglang.adaptations import source


class Need(StrEnum):
    NEEDED = "needed"
    NOT_NEEDED = "not needed any more"
    MISSING = "missing target (must be ported)"
    UNKNOWN = "cannot tell here"


ProbeAnswer = tuple[Need, str]
"""The verdict, and an explanation, such as why it cannot be determined."""
Probe = Callable[[], ProbeAnswer]

_PATIENCE = 60.0
"""Seconds for probe code that runs in a process of its own."""


def says(target: str, *texts: str) -> Probe:
    """A probe: the adaptation is needed while the source of `target` contains all of `texts`."""
    return lambda: _read(target, lambda source: all(it in source for it in texts))


def lacks(target: str, *texts: str) -> Probe:
    """A probe: the adaptation is needed while the source of `target` contains none of `texts`."""
    return lambda: _read(target, lambda source: not any(it in source for it in texts))


def runs(code: str) -> Probe:
    """A probe: the adaptation is needed while `code` prints `needed`, in a Python without any adaptations."""

    def run() -> ProbeAnswer:
        command = [sys.executable, "-W", "ignore", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
        if done.returncode != 0:
            return Need.UNKNOWN, (done.stderr.strip().splitlines() or ["it failed"])[-1]
        return _needed(done.stdout.strip() == "needed")

    return run


def always() -> ProbeAnswer:
    """A probe: always needed, because it is how Prism drives upstream."""
    return Need.NEEDED, ""


def on_gpu() -> ProbeAnswer:
    """A probe: cannot be determined without a GPU."""
    return Need.UNKNOWN, "needs a GPU"


def _read(target: str, needs: Callable[[str], bool]) -> ProbeAnswer:
    if reason := source.problem(target):
        return Need.MISSING, reason
    return _needed(needs(source.text(target)))


def _needed(needed: bool) -> ProbeAnswer:
    return (Need.NEEDED if needed else Need.NOT_NEEDED), ""
