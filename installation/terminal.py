"""Terminal output, pip calls and the error shared by all installation steps."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping, Sequence

from installation.paths import PYTHON


class InstallationError(Exception):
    """A step failed; the message says which one and what to do."""


def say(text: str) -> None:
    """Print a step's heading."""
    print(f"\n== {text}", flush=True)


def pip(*arguments: str, environment: Mapping[str, str] | None = None) -> None:
    """Run pip in `.venv`, with `environment` added to this process's.

    Raises:
        InstallationError: pip failed; its output says why.
    """
    command: Sequence[str] = [str(PYTHON), "-m", "pip", "--disable-pip-version-check", *arguments]
    if subprocess.run(command, env={**os.environ, **(environment or {})}).returncode:
        raise InstallationError(f"`pip {arguments[0]}` failed, see above; run make gpu again to continue from here")
