"""The engine's thread: executes commands between steps and sends outputs to the event loop in batches."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

import torch

log = logging.getLogger("prism.engine")

T = TypeVar("T")
Command = Callable[[], None]


class StepRunner(Protocol):
    """The work of the thread."""

    @property
    def idle(self) -> bool: ...

    def step(self) -> None: ...


class EngineThread:
    """The thread of one engine; its public methods are called on the event loop."""

    def __init__(self, steps: StepRunner, threads: int, flush: Command) -> None:
        self._steps = steps
        self._threads = threads
        self._flush = flush
        self._loop = asyncio.get_running_loop()
        self._commands: queue.SimpleQueue[Command] = queue.SimpleQueue()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def post(self, command: Command) -> None:
        """Run `command` on the thread, between two steps."""
        self._commands.put(command)

    async def call(self, function: Callable[[], T]) -> T:
        """Run `function` on the thread, between two steps, and wait for its result. Raises what it raises."""
        future: asyncio.Future[T] = self._loop.create_future()

        def run() -> None:
            try:
                result = function()
            except BaseException as error:  # passed on to the caller
                self._loop.call_soon_threadsafe(_settle, future, None, error)
            else:
                self._loop.call_soon_threadsafe(_settle, future, result, None)

        self.post(run)
        return await future

    async def stop(self) -> None:
        """End the thread after the current step."""
        self.post(self._stop)
        await asyncio.to_thread(self._thread.join)

    def _stop(self) -> None:
        self._stopping = True

    def _run(self) -> None:
        torch.set_num_threads(self._threads)
        with torch.inference_mode():
            while not self._stopping:
                try:
                    self._run_once()
                except Exception:
                    log.exception("a step of the engine failed")

    def _run_once(self) -> None:
        if self._steps.idle:  # nothing to decode: block until a command comes
            self._commands.get()()
        while not self._commands.empty():
            self._commands.get()()
        self._flush()
        if not self._steps.idle and not self._stopping:
            self._steps.step()


def _settle(future: asyncio.Future[T], result: T | None, error: BaseException | None) -> None:
    if future.done():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)  # type: ignore[arg-type]
