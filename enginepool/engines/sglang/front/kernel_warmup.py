"""Warms up kernels: sends a model its first requests on a machine before clients do.

Triton compiles a kernel for seconds when it is first called with certain arguments, then caches it on disk. So the
worker of a model that was never served on this machine sends it some requests while it is active and otherwise idle. A
marker file next to Triton's kernels records that this was done.
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
"""Lengths of the prompts, in tokens. Triton compiles separate variants of a kernel depending on the number of tokens
and on whether it is odd, even or a multiple of 16."""
TOKENS = 4
"""Tokens per answer."""
SAMPLING = {"temperature": 0, "max_new_tokens": TOKENS, "ignore_eos": True}
SCHEMA = {"type": "object", "properties": {"ready": {"type": "boolean"}}, "required": ["ready"]}
_SAFE_VOCABULARY = 97
"""Number of token ids that every vocabulary has. All lengths differ modulo this number, so that no prompt shares a
prefix with another in the prefix cache."""
_NO_REQUEST = -1
"""Stands in for a request id, since the gateway does not know these requests."""
_LATEST_DEADLINE = 1e9
"""A deadline, in seconds, later than any client's."""
QUIET = 0.1
"""Seconds without client requests before a warm-up request is sent: the client for whom the model was activated sends
its requests right after the activation, and would have to wait for the compiler."""

Run = Callable[[FrontRequest, Emit], Awaitable[None]]
"""Runs a request in the engine."""


def mark_for(key: str) -> Path | None:
    """The marker file that says that the model of a segment's `key` was warmed up; None on a CPU, without kernels.

    It lies in the folder of Triton's kernels (see `gpu_environment`), so it disappears together with them.
    """
    folder = os.environ.get("TRITON_CACHE_DIR")
    return Path(folder, f"prism-{key}") if folder else None


class Traffic:
    """Whether the worker has client requests."""

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
        """Wait until there have been no requests for `seconds`."""
        quiet = False
        while not quiet:
            await self._none.wait()
            try:
                await asyncio.wait_for(self._some.wait(), seconds)
            except TimeoutError:
                quiet = True


class KernelWarmup:
    """Warms up the active model. `perform` must run as a task; it ends soon after `stop`."""

    def __init__(self, mark: Path, run: Run, manager: Any, traffic: Traffic) -> None:
        self._mark = mark
        self._run = run
        self._manager = manager
        self._traffic = traffic
        self._live: FrontRequest | None = None
        self._stopped = asyncio.Event()

    async def perform(self) -> None:
        """Root of the task. If a request fails, the first client to send a similar one will get the error."""
        for submit in _requests(self._manager):
            if not await self._may_ask():
                return
            status = await self._ask(submit)
            if status != 200:
                log.debug("a warm-up request ended with status %s", status)
                return
        self._put_mark()

    def stop(self) -> None:
        """Stop warming up, because the model is about to be parked."""
        self._stopped.set()
        if self._live is not None:
            self._manager.abort(self._live)

    async def _may_ask(self) -> bool:
        """Wait until there are no client requests; returns False if the warm-up was stopped."""
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
    """Token ids of each length below `longest`, and one prompt that begins with a cached prefix."""
    prompt: list[int] = []
    for length in (length for length in LENGTHS if length < longest):
        prompt = [(length + place) % _SAFE_VOCABULARY for place in range(length)]
        yield prompt
    if 2 * len(prompt) < longest:
        yield 2 * prompt


def _submit(path: str, body: dict[str, Any]) -> Submit:
    return Submit(_NO_REQUEST, path, json.dumps(body).encode(), _LATEST_DEADLINE)
