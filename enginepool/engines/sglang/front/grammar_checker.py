"""Compiles grammars in a process that can be killed before a rank sees them, because compiling some takes forever.

For example, llguidance 1.9.1 multiplies out the `anyOf`s in an `allOf`: ten of them take 0.2 s, twenty take minutes. In
the rank, SGLang would compile in a thread, which cannot be ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections import OrderedDict
from collections.abc import Iterator
from typing import Any

import msgspec

from enginepool.engines.sglang.front.requests import FrontRequest

KINDS = ("json_schema", "regex", "ebnf", "structural_tag")
"""SGLang's sampling parameters that hold a grammar."""
AT_ONCE = 2
"""Maximum number of concurrent checks per worker."""
REMEMBERED = 4096
"""Number of grammars whose results are cached."""
IDLE = 2.0
"""Seconds after which an idle process is ended."""
_PROGRAM = "enginepool.grammar_check"


class GrammarChecker:
    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._too_much = f"compiling this grammar takes longer than {seconds:g} s, or too much memory"
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._idle: list[Process] = []
        self._busy: set[Process] = set()
        self._found: OrderedDict[bytes, str] = OrderedDict()

    async def check(self, sampling: Any, live: FrontRequest | None) -> None:
        """Check the grammars in SGLang's sampling parameters.

        Raises:
            ValueError: one is invalid or takes too long, or the client has disconnected.
        """
        for kind, grammar in _grammars(sampling):
            key = hashlib.sha256(f"{kind}:{grammar}".encode(errors="replace")).digest()
            if key not in self._found:
                self._remember(key, await self._check_unless_gone(kind, grammar, live))
            if problem := self._found.get(key):
                raise ValueError(f"{kind}: {problem}.")

    def close(self) -> None:
        for process in (*self._idle, *self._busy):
            _kill(process)
        self._idle.clear()

    def _remember(self, key: bytes, problem: str) -> None:
        self._found[key] = problem
        if len(self._found) > REMEMBERED:
            self._found.popitem(last=False)

    async def _check_unless_gone(self, kind: str, grammar: str, live: FrontRequest | None) -> str:
        task = asyncio.ensure_future(self._check_one(kind, grammar))
        gone = asyncio.ensure_future((live.gone if live is not None else asyncio.Event()).wait())
        try:
            await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ValueError("The request was aborted.")
            return task.result()
        finally:
            gone.cancel()
            task.cancel()

    async def _check_one(self, kind: str, grammar: str) -> str:
        """The problem with a grammar, or ""."""
        async with self._slots:
            process = self._idle.pop() if self._idle else await _start()
            self._busy.add(process)
            problem = None
            try:
                async with asyncio.timeout(self._seconds):
                    problem = await _ask(process, kind, grammar)
            except TimeoutError:
                pass
            finally:
                self._busy.discard(process)
                self._keep_idle(process) if problem is not None else _kill(process)
            return self._too_much if problem is None else problem

    def _keep_idle(self, process: Process) -> None:
        self._idle.append(process)
        asyncio.get_running_loop().call_later(IDLE, self._retire, process)

    def _retire(self, process: Process) -> None:
        if process in self._idle:
            self._idle.remove(process)
            _kill(process)


def _grammars(sampling: Any) -> Iterator[tuple[str, str]]:
    for options in sampling if isinstance(sampling, list) else (sampling,):
        if isinstance(options, dict):
            yield from ((kind, options[kind]) for kind in KINDS if isinstance(options.get(kind), str))


async def _start() -> Process:
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", _PROGRAM, stdin=PIPE, stdout=PIPE, env=environment
    )
    try:
        await _line(process)
    except BaseException:
        _kill(process)
        raise
    return process


async def _ask(process: Process, kind: str, grammar: str) -> str | None:
    """The problem with a grammar, or ""; None if the process died of it."""
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError):
        process.stdin.write(msgspec.json.encode((kind, grammar)) + b"\n")
        await process.stdin.drain()
    answer = await _line(process)
    return msgspec.json.decode(answer, type=str) if answer else None


async def _line(process: Process) -> bytes:
    assert process.stdout is not None
    return await process.stdout.readline()


def _kill(process: Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
