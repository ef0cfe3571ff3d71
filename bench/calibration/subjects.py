"""Starts engines under test together, sends them commands, and ends them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.subjects.processes import PROJECT
from enginepool.host.gpu_environment import gpu_environment
from simulator.errors import StudyError

COMMAND = (sys.executable, "-m", "bench.calibration.subject")
PLAIN = {"ENABLE_KVCACHED": "false", "KVCACHED_AUTOPATCH": "0"}
"""Environment for SGLang with its own, static KV cache."""
START_TIMEOUT = 420.0
"""Timeout in seconds; the first time on a machine, kernels are compiled."""
ANSWER_TIMEOUT = 240.0
STOP_GRACE = 10.0
"""Seconds between the end of a subject's commands and SIGKILL."""
LOG_TAIL = 4000
"""Bytes of the log quoted in errors, enough for SGLang's final traceback."""
LONGEST_ANSWER = 2**22
"""Bytes."""


@dataclass(frozen=True)
class EngineSeat:
    """The model that an engine is started for."""

    model: str
    folder: Path
    number: int
    """Number of the engine among those of its model, from 0."""
    max_total_tokens: int

    @property
    def name(self) -> str:
        return f"{self.model}-{self.number}"


class EngineSubject:
    def __init__(self, seat: EngineSeat, process: asyncio.subprocess.Process, log: Path) -> None:
        self.seat = seat
        self._process = process
        self._log = log

    async def until_ready(self) -> None:
        """Wait until the engine is ready. Raises: StudyError if it ends or takes too long."""
        await self._answer(START_TIMEOUT)

    async def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """Send a command and return the answer. Raises: StudyError, quoting the log, if it ends or takes too long."""
        assert self._process.stdin is not None
        with suppress(ConnectionError):  # reading the answer will report why the process ended
            self._process.stdin.write(json.dumps(command).encode() + b"\n")
            await self._process.stdin.drain()
        return await self._answer(ANSWER_TIMEOUT)

    async def _answer(self, within: float) -> dict[str, Any]:
        assert self._process.stdout is not None
        try:
            async with asyncio.timeout(within):
                line = await self._process.stdout.readline()
                if not line.endswith(b"\n"):
                    code = await self._process.wait()
                    raise StudyError(f"{self.seat.name} ended with exit code {code}{self._last_words()}")
        except TimeoutError:
            raise StudyError(f"{self.seat.name} does not answer after {within:.0f} s{self._last_words()}") from None
        answer: dict[str, Any] = json.loads(line)
        return answer

    async def stop(self) -> None:
        """End the engine with all its processes."""
        assert self._process.stdin is not None
        try:
            async with asyncio.timeout(STOP_GRACE):
                self._process.stdin.close()
                await self._process.wait()
        except TimeoutError:
            pass
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()

    def _last_words(self) -> str:
        tail = self._log.read_bytes()[-LOG_TAIL:].decode(errors="replace").strip()
        return f"; its last output:\n{tail}" if tail else ""


@asynccontextmanager
async def subjects(
    seats: Iterable[EngineSeat], device: str, logs: Path, command: Sequence[str] = COMMAND
) -> AsyncIterator[list[EngineSubject]]:
    """Start one engine per seat, all at once; their output goes to files in `logs`.

    Raises:
        StudyError: an engine cannot be started or ends before it is ready.
        PoolError: packages for a GPU are missing.
    """
    environment = {**os.environ, **(gpu_environment(os.environ) if device == "cuda" else {}), **PLAIN}
    running: list[EngineSubject] = []
    try:
        for seat in seats:
            running.append(await _start(seat, device, logs, command, environment))
        await at_once(subject.until_ready() for subject in running)
        yield running
    finally:
        await asyncio.gather(*(subject.stop() for subject in running))


async def _start(
    seat: EngineSeat, device: str, logs: Path, command: Sequence[str], environment: dict[str, str]
) -> EngineSubject:
    arguments = [str(seat.folder), "--max-total-tokens", str(seat.max_total_tokens), "--device", device]
    log = logs / f"{seat.name}.log"
    with log.open("wb") as output:
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                *arguments,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=output,
                cwd=PROJECT,
                env=environment,
                limit=LONGEST_ANSWER,
                start_new_session=True,
            )
        except OSError as error:
            raise StudyError(f"{seat.name} cannot be started: {error}") from error
    return EngineSubject(seat, process, log)


async def at_once(asked: Iterable[Coroutine[Any, Any, Any]]) -> list[Any]:
    """Await all concurrently; returns the results in order. Raises: the StudyError of one that failed; the others are
    cancelled."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in asked]
    except* StudyError as errors:
        raise _first(errors) from None
    return [task.result() for task in tasks]


def _first(errors: BaseExceptionGroup[StudyError]) -> StudyError:
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
