"""A question to what may never answer, asked by a process that can be given up."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from tempfile import TemporaryFile
from typing import IO, Any

_FAREWELL = 2.0
"""Seconds for a killed process to be gone. One that waits inside the driver is not, and is left to the kernel."""
_SHOWN = 300
"""Characters of what a process that failed has said last."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What it printed, as JSON, or why there is none."""

    data: dict[str, Any] = field(default_factory=dict)
    failure: str = ""


def ask(module: str, *arguments: str, seconds: float, environment: Mapping[str, str] | None = None) -> Answer:
    """Run `python -m module arguments`, for at most `seconds` and a little."""
    command = [sys.executable, "-m", module, *arguments]
    variables = {**os.environ, **(environment or {})}
    # Files and not pipes: whatever it starts may hold those open after its end.
    with TemporaryFile() as output, TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=variables, start_new_session=True)
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            _give_up(process)
            return Answer(failure=f"no answer within {seconds:.0f} s")
        except BaseException:
            _give_up(process)
            raise
        return _answer(status, _read(output), _read(errors))


def _answer(status: int, output: str, errors: str) -> Answer:
    if status:
        said = errors.strip().splitlines()
        return Answer(failure=said[-1][-_SHOWN:] if said else f"exit status {status}")
    try:
        # What libraries print while they are imported comes before.
        return Answer(json.loads(output.strip().rpartition("\n")[2]))
    except json.JSONDecodeError:
        return Answer(failure=f"it answered {output[-_SHOWN:]!r}")


def _read(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


def _give_up(process: subprocess.Popen[bytes]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    try:
        process.wait(_FAREWELL)
    except subprocess.TimeoutExpired:
        process.returncode = -signal.SIGKILL  # so that nobody waits for it any more
