"""A large request through SGLang's application in a thread of its own, beside the worker's event loop.

SGLang reads a body, renders a chat template, makes tokens and writes an answer without ever waiting: for 16 MiB that
is seconds, in which no ping and no stream would be answered. Apart, only the gateway's side (`Exchange`) and the
tokenizer manager's are on the worker's loop: to both of them it goes over, step by step.
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
"""Requests of a worker that are prepared apart at a time. Each one's Python delays everybody else's by 5 ms."""


class LargeRequests:
    """`seconds` is how long a request's preparation may take: all until the tokenizer manager has it."""

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
    """In the thread."""

    async def receive() -> dict[str, Any]:
        event: dict[str, Any] = await _on_loop(exchange.receive(), main)
        return event

    async def send(event: dict[str, Any]) -> None:
        await _on_loop(exchange.send(event), main)

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(app(exchange.scope, receive, send))


async def iterate_on(outputs: AsyncIterator[T], main: asyncio.AbstractEventLoop) -> AsyncIterator[T]:
    """What an asynchronous generator of the loop `main` gives, on another thread's loop."""
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
    """`work`, which may be any awaitable."""
    return await work
