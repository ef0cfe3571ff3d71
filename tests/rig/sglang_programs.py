"""How a test runs one of tests/sglang/programs: in a child of a process that all tests share."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest

PATIENCE = 300.0
"""Seconds after which a program is taken to hang."""

RunProgram = Callable[..., tuple[int, str]]
"""Of its name and its arguments, its exit status and what it printed."""
PrintOf = Callable[..., str]


@pytest.fixture(scope="session")
def run_program(run_mark: str) -> Iterator[RunProgram]:
    command = [sys.executable, "-m", "tests.sglang.programs"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, text=True, start_new_session=True, **pipes) as process:
        yield lambda *asked: _ask(process, asked)
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="session")
def print_of(run_program: RunProgram) -> PrintOf:
    """What a program printed, which must have succeeded."""

    def run(*asked: str) -> str:
        status, printed = run_program(*asked)
        assert status == 0, printed
        return printed

    return run


def _ask(process: subprocess.Popen[str], asked: tuple[str, ...]) -> tuple[int, str]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(asked) + "\n")
    process.stdin.flush()
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        assert selector.select(PATIENCE), f"no answer: {asked}"
    status, printed = json.loads(process.stdout.readline())
    return status, printed
