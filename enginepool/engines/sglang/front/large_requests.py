"""Runs large requests through SGLang's application in threads of their own, off the worker's event loop.

SGLang parses a body, renders the chat template, tokenizes and formats the answer without ever yielding: seconds for 16
MiB, during which pings and streams would stall. In a thread with its own loop, only the gateway's side (`Exchange`) and
the tokenizer manager run on the worker's loop; each call to them crosses over.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from functools import partial
from typing import Any, TypeVar

from enginepool.engines.sglang.front.asgi import Exchange
from enginepool.engines.sglang.front.requests import FrontRequest
from enginepool.openai.errors import took_too_long
from enginepool.own_thread import OwnThread, ThreadEnded, first_of

T = TypeVar("T")

AT_ONCE = 4
"""Maximum concurrent threads. Because of the GIL, each of them delays the event loop by up to 5 ms at a time."""


class LargeRequests:
    """Runs large requests; each may take `seconds` until the tokenizer manager has it."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._slots = asyncio.Semaphore(AT_ONCE)

    async def run(self, app: Any, exchange: Exchange, live: FrontRequest) -> None:
        async with self._slots:
            if live.aborted:
                return
            thread = OwnThread(partial(_serve, app, exchange, asyncio.get_running_loop()))
            await first_of(thread.done, live.prepared, self._seconds)
            if not live.prepared.is_set() and not thread.done.done():
                thread.end()
                if not live.aborted:
                    exchange.fail(took_too_long(self._seconds))
                await asyncio.wait((thread.done,))
        with contextlib.suppress(ThreadEnded):
            await thread.done


def _serve(app: Any, exchange: Exchange, main: asyncio.AbstractEventLoop) -> None:
    """Run the application; called in the request's own thread."""

    async def receive() -> dict[str, Any]:
        event: dict[str, Any] = await _on_loop(exchange.receive(), main)
        return event

    async def send(event: dict[str, Any]) -> None:
        await _on_loop(exchange.send(event), main)

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(app(exchange.scope, receive, send))


async def iterate_on(outputs: AsyncIterator[T], main: asyncio.AbstractEventLoop) -> AsyncIterator[T]:
    """Iterate over an asynchronous generator of the loop `main` from another thread's loop."""
    generator: Any = outputs
    try:
        while True:
            try:
                yield await _on_loop(anext(generator), main)
            except StopAsyncIteration:
                return
    finally:
        await _on_loop(generator.aclose(), main)


async def _on_loop(work: Any, main: asyncio.AbstractEventLoop) -> Any:
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(_caught(work), main))


async def _caught(work: Coroutine[Any, Any, T]) -> T:
    """Wrap an awaitable in a coroutine, which run_coroutine_threadsafe requires."""
    return await work
