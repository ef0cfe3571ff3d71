"""Whether an adaptation is still needed, as far as looking at what is installed here tells."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from enum import StrEnum

from enginepool.engines.sglang.adaptations import source


class Verdict(StrEnum):
    NEEDED = "needed"
    NOT_NEEDED = "not needed any more"
    MISSING = "missing target (must be ported)"
    UNKNOWN = "cannot tell here"


Answer = tuple[Verdict, str]
"""With what else is to be said, such as why there is no telling."""
Probe = Callable[[], Answer]

_PATIENCE = 60.0
"""Seconds for code that runs in a process of its own."""


def says(target: str, *texts: str) -> Probe:
    """It is needed while the source of `target` has all of these."""
    return lambda: _read(target, lambda source: all(it in source for it in texts))


def lacks(target: str, *texts: str) -> Probe:
    """It is needed while the source of `target` has none of these."""
    return lambda: _read(target, lambda source: not any(it in source for it in texts))


def runs(code: str) -> Probe:
    """It is needed while this prints `needed`, in a Python without any adaptation."""

    def run() -> Answer:
        command = [sys.executable, "-W", "ignore", "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
        if done.returncode != 0:
            return Verdict.UNKNOWN, (done.stderr.strip().splitlines() or ["it failed"])[-1]
        return _needed(done.stdout.strip() == "needed")

    return run


def always() -> Answer:
    """It is how Prism drives upstream, whatever that does."""
    return Verdict.NEEDED, ""


def on_gpu() -> Answer:
    """Only a GPU shows it."""
    return Verdict.UNKNOWN, "needs a GPU"


def _read(target: str, needs: Callable[[str], bool]) -> Answer:
    if reason := source.problem(target):
        return Verdict.MISSING, reason
    return _needed(needs(source.text(target)))


def _needed(needed: bool) -> Answer:
    return (Verdict.NEEDED if needed else Verdict.NOT_NEEDED), ""
