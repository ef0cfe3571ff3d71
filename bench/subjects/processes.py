"""Runs a server in a process group of its own, and makes sure that nothing of it is left."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

import uvloop

from simulator.errors import StudyError

PROJECT = Path(__file__).resolve().parents[2]
STOP_GRACE = 15.0
"""Seconds between SIGTERM and SIGKILL."""
LOG_TAIL = 1500
"""Bytes of a server's output quoted in errors."""
STOPPED = 130
"""Exit code of a benchmark that was ended by a signal."""


class Server:
    """A running server. `pid` is the process that was started; in Prism's case, the gateway."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process
        self.log = log

    async def until_ready(self, ready: Callable[[], Awaitable[bool]], within: float) -> None:
        """Poll `ready` for at most `within` seconds. Raises: StudyError."""
        try:
            async with asyncio.timeout(within):
                while not await ready():
                    self.check()
                    await asyncio.sleep(0.1)
        except TimeoutError:
            raise StudyError(f"{self.name} does not answer after {within:.0f} s{self.last_words()}") from None

    def check(self) -> None:
        """Raises: StudyError if the process has ended."""
        if self._process.returncode is not None:
            raise StudyError(f"{self.name} ended with exit code {self._process.returncode}{self.last_words()}")

    def said(self, beginning: str) -> str | None:
        """The rest of the first output line with this beginning; None if there is none yet."""
        lines = self.log.read_text(errors="replace").splitlines()
        return next((line.removeprefix(beginning) for line in lines if line.startswith(beginning)), None)

    async def stop(self) -> None:
        self._signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(STOP_GRACE):
                await self._process.wait()
        except TimeoutError:
            pass
        finally:
            self._signal(signal.SIGKILL)
        await self._process.wait()

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def last_words(self) -> str:
        """The end of its output, for errors."""
        tail = self.log.read_bytes()[-LOG_TAIL:].decode(errors="replace").strip()
        return f"; its last output:\n{tail}" if tail else ""


@asynccontextmanager
async def running(
    name: str, command: Sequence[object], folder: Path, env: Mapping[str, str] | None = None
) -> AsyncIterator[Server]:
    """Run `command` in the project's root during the block; its output goes to a file in `folder`.

    Raises:
        StudyError: the command cannot be started.
    """
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        try:
            process = await asyncio.create_subprocess_exec(
                *map(str, command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=PROJECT,
                env={**os.environ, **(env or {})},
                start_new_session=True,
            )
        except OSError as error:
            raise StudyError(f"{name} cannot be started: {error}") from error
    server = Server(name, process, log)
    try:
        yield server
    finally:
        await server.stop()


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def cancel_on_signals() -> None:
    """Cancel the current task on SIGINT and SIGTERM, so that all servers are stopped on the way out."""
    task = asyncio.current_task()
    assert task is not None
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, task.cancel)


def run_to_its_end(name: str, command: Coroutine[Any, Any, int]) -> NoReturn:
    """Run a benchmark and exit with what `command` returns, or with STOPPED if it was ended by a signal."""
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            sys.exit(runner.run(command))
    except asyncio.CancelledError:
        print(f"{name}: stopped early; no figures", file=sys.stderr)
        sys.exit(STOPPED)
