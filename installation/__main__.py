"""`python -m installation [--without-gpu]`: creates a working GPU environment in `.venv`."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from installation import preflight
from installation.paths import PROJECT, PYTHON, VENV
from installation.steps import install
from installation.terminal import InstallationError, say


def main() -> int:
    """Returns the exit status: 0 on success, 1 if the machine lacks something or a step failed."""
    parser = argparse.ArgumentParser(prog="make gpu")
    text = "install even without a GPU or driver, e.g. when building an image; with make: ARGS=--without-gpu"
    parser.add_argument("--without-gpu", action="store_true", help=text)
    parser.add_argument("--checked", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if not _inside() and _works():
        _go_on_inside()
    if not options.checked and not preflight.passes(without_gpu=options.without_gpu):
        return 1
    try:
        if not _inside():
            _make()
            _go_on_inside("--checked")
        install()
    except InstallationError as error:
        print(f"make gpu: {error}", file=sys.stderr)
        return 1
    say("prism doctor")
    return subprocess.run([str(PYTHON), "-m", "gateway.cli", "doctor"], cwd=str(PROJECT)).returncode


def _inside() -> bool:
    return Path(sys.prefix).resolve() == VENV.resolve()


def _works() -> bool:
    """Whether `.venv` has a working Python of a supported version with pip; if not, it is created again."""
    ask = f"import pip, sys; sys.exit(not {preflight.PYTHONS[0]} <= sys.version_info[:2] <= {preflight.PYTHONS[1]})"
    try:
        return subprocess.run([str(PYTHON), "-c", ask], capture_output=True).returncode == 0
    except OSError:
        return False


def _make() -> None:
    say(f"{VENV.name}: Python {sys.version.split()[0]}")
    if subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)]).returncode:
        raise InstallationError(f"{sys.executable} could not create {VENV}")


def _go_on_inside(*arguments: str) -> None:
    os.execv(str(PYTHON), [str(PYTHON), "-m", "installation", *arguments, *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
