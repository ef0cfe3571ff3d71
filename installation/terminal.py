"""What the steps say, what they run, and how they fail."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

from installation.places import PYTHON


class InstallationError(Exception):
    """A step failed; the text says which and what to do."""


def say(text: str) -> None:
    """The heading of a step."""
    print(f"\n== {text}", flush=True)


def pip(*arguments: str, environment: Mapping[str, str] | None = None) -> None:
    """
    Raises:
        InstallationError: pip failed; it has said why.
    """
    command: Sequence[str] = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments]
    if subprocess.run(command, env={**os.environ, **(environment or {})}).returncode:
        raise InstallationError(f"`pip {arguments[0]}` failed, see above; run make gpu again to go on from here")
