"""What a model's first requests on a machine would wait for, found out before they come.

Triton compiles a kernel when it is first called with such arguments, for seconds, and keeps it on disk. So a model that
was never served on this machine is asked a few things by its own worker, while it is active and nobody else asks. A
mark beside Triton's kernels says that it was done.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

from enginepool.engine import Emit, EngineLoad
from enginepool.engines.sglang.front.requests import FrontRequest
from enginepool.messages import FromWorker, Reply, Submit

log = logging.getLogger("prism.sglang")

LENGTHS = (1, 24, 25, 32, 100, 101, 112, 300, 301, 304, 1000, 1001, 1008)
"""Tokens of the prompts. Which kernel is taken depends on how many there are, and on whether that is odd, even or a
multiple of 16: each is compiled for itself."""
TOKENS = 4
"""Of each answer."""
SAMPLING = {"temperature": 0, "max_new_tokens": TOKENS, "ignore_eos": True}
SCHEMA = {"type": "object", "properties": {"ready": {"type": "boolean"}}, "required": ["ready"]}
_SAFE_VOCABULARY = 97
"""In any vocabulary. No two lengths leave the same rest, so no prompt finds another's beginning in the prefix cache."""
_NO_REQUEST = -1
"""In place of a request's id, of which the gateway knows nothing."""
_LATEST_DEADLINE = 1e9
"""A deadline in seconds behind all others."""
QUIET = 0.1
"""Seconds without a request before one of the rehearsal's: whom a model was activated for asks it just afterwards, and
would wait for what is being compiled."""

Run = Callable[[FrontRequest, Emit], Awaitable[None]]
"""Has the engine answer a request."""


def mark_for(key: str) -> Path | None:
    """The file that says that the model of a segment's `key` was rehearsed. None: nothing is compiled, as on a CPU.

    It lies where Triton keeps its kernels (`gpu_environment` says where that is), and is gone when those are.
    """
    folder = os.environ.get("TRITON_CACHE_DIR")
    return Path(folder, f"prism-{key}") if folder else None


class Traffic:
    """Whether anybody asks the worker for anything."""

    def __init__(self) -> None:
        self._some, self._none = asyncio.Event(), asyncio.Event()
        self.end()

    def begin(self) -> None:
        self._none.clear()
        self._some.set()

    def end(self) -> None:
        self._some.clear()
        self._none.set()

    async def wait_quiet(self, seconds: float) -> None:
        """Wait until there has been none for so long."""
        quiet = False
        while not quiet:
            await self._none.wait()
            try:
                await asyncio.wait_for(self._some.wait(), seconds)
            except TimeoutError:
                quiet = True


class KernelWarmup:
    """Of the active model. `perform` is to be run as a task, and ends soon after `stop`."""

    def __init__(self, mark: Path, run: Run, manager: Any, traffic: Traffic) -> None:
        self._mark = mark
        self._run = run
        self._manager = manager
        self._traffic = traffic
        self._live: FrontRequest | None = None
        self._stopped = asyncio.Event()

    async def perform(self) -> None:
        """Root of its task. What fails is left to the first one who asks for it, who is told why."""
        for submit in _requests(self._manager):
            if not await self._may_ask():
                return
            status = await self._ask(submit)
            if status != 200:
                log.debug("a rehearsal ended with status %s", status)
                return
        self._put_mark()

    def stop(self) -> None:
        """The model is about to leave."""
        self._stopped.set()
        if self._live is not None:
            self._manager.abort(self._live)

    async def _may_ask(self) -> bool:
        """Wait until nobody else asks. False: it is stopped."""
        quiet = asyncio.ensure_future(self._traffic.wait_quiet(QUIET))
        stopped = asyncio.ensure_future(self._stopped.wait())
        try:
            await asyncio.wait((quiet, stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            quiet.cancel()
            stopped.cancel()
        return not self._stopped.is_set()

    async def _ask(self, submit: Submit) -> int | None:
        said: list[FromWorker] = []
        self._live = FrontRequest(submit, EngineLoad(), lambda live: None)
        try:
            await self._run(self._live, said.append)
        finally:
            self._live = None
        return next((message.status for message in said if isinstance(message, Reply)), None)

    def _put_mark(self) -> None:
        try:
            self._mark.parent.mkdir(parents=True, exist_ok=True)
            self._mark.touch()
        except OSError as error:
            log.debug("%s: %s", self._mark, error)


def _requests(manager: Any) -> Iterator[Submit]:
    for prompt in _prompts(int(manager.max_req_input_len) - TOKENS):
        if manager.is_generation:
            yield _submit("/generate", {"input_ids": prompt, "sampling_params": SAMPLING})
        else:
            yield _submit("/v1/embeddings", {"model": manager.served_model_name, "input": prompt})
    if manager.is_generation and manager.server_args.grammar_backend != "none":
        sampling = {"max_new_tokens": TOKENS, "json_schema": json.dumps(SCHEMA)}
        yield _submit("/generate", {"input_ids": [1], "sampling_params": sampling})


def _prompts(longest: int) -> Iterator[list[int]]:
    """Token ids: of each length below `longest`, and one that begins with what is in the prefix cache."""
    prompt: list[int] = []
    for length in (length for length in LENGTHS if length < longest):
        prompt = [(length + place) % _SAFE_VOCABULARY for place in range(length)]
        yield prompt
    if 2 * len(prompt) < longest:
        yield 2 * prompt


def _submit(path: str, body: dict[str, Any]) -> Submit:
    return Submit(_NO_REQUEST, path, json.dumps(body).encode(), _LATEST_DEADLINE)
