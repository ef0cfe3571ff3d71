"""The worker's side of the transformers engine: everything here runs on the worker's event loop."""

from __future__ import annotations

import asyncio
from functools import partial

from config.errors import EngineError
from enginepool.engine import Emit, EngineLoad, Output
from enginepool.engines.phases import Phases
from enginepool.engines.transformers.batch import Batch
from enginepool.engines.transformers.slot import ModelSlot
from enginepool.engines.transformers.thread import EngineThread
from enginepool.messages import (
    Chunk,
    Counted,
    Done,
    Head,
    Manifest,
    ModelSpec,
    Reply,
    SegmentRef,
    Submit,
)
from enginepool.openai.errors import took_too_long
from enginepool.own_thread import LARGE, ThreadEnded, TookTooLong, run_in_own_thread


class TransformersEngine:
    """Serves one model at a time on `threads` CPU threads, with at most `max_running` concurrent requests."""

    name = "transformers"
    held = 0
    copy_seconds = 0.0

    def __init__(self, emit: Emit, *, max_running: int, threads: int, preparation: float = 20.0) -> None:
        self._emit = emit
        self._preparation = preparation
        self._preparing: dict[int, asyncio.Event] = {}
        """Requests being prepared in threads of their own, each with the event that its client is gone."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._live: set[int] = set()
        self._outbox: list[Output] = []
        self._slot = ModelSlot()
        self._batch = Batch(self._slot, max_running, self._outbox.append, self._flush)
        self.load: EngineLoad = self._batch.load
        self._thread = EngineThread(self._batch, threads, self._flush)
        self._thread.start()

    async def start(self) -> None:
        """There is nothing to wait for."""

    async def activate(
        self,
        model: ModelSpec,
        manifest: Manifest | None,
        segment: SegmentRef | None,
        verify: bool,
        *,
        kv_limit: int = 0,
        kv_revision: int = 0,
    ) -> dict[str, float]:
        if manifest is None or segment is None:
            raise EngineError(f"{model.name}: this engine needs the weights in host memory")
        return await self._thread.call(partial(self._slot.activate, model, manifest, segment, verify))

    async def park(self) -> str:
        return await self._thread.call(self._slot.park)

    async def blank(self) -> dict[str, float]:
        phases = Phases()
        await self._thread.call(self._slot.blank)
        phases.end("teardown")
        return phases.seconds

    def submit(self, request: Submit) -> None:
        self._live.add(request.request)
        if len(request.body) <= LARGE:
            self._thread.post(partial(self._batch.add, request))
            return
        task = self._loop.create_task(self._add_large(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _add_large(self, request: Submit) -> None:
        """Root of the task that prepares a request with a large prompt, without delaying decode steps."""
        gone = self._preparing[request.request] = asyncio.Event()
        try:
            prepared = await run_in_own_thread(partial(self._batch.prepare, request), self._preparation, gone)
        except TookTooLong:
            prepared = took_too_long(self._preparation)
        except ThreadEnded:
            return
        finally:
            del self._preparing[request.request]
        if not gone.is_set():
            self._thread.post(partial(self._batch.add, request, prepared))

    def abort(self, request: int) -> None:
        self._live.discard(request)
        if request in self._preparing:
            self._preparing[request].set()
        self._thread.post(partial(self._batch.abort, request))

    def offer(self, model: ModelSpec, segment: SegmentRef) -> None:
        """There is nothing to prepare."""

    def withdraw(self, model: str) -> None:
        """There is nothing to release."""

    def set_kv_limit(self, revision: int, nbytes: int) -> None:
        self._thread.post(partial(self._batch.set_kv_limit, revision, nbytes))

    def hold(self, paused: bool) -> None:
        self._thread.post(partial(setattr, self._batch, "held", paused))

    async def close(self) -> None:
        for gone in self._preparing.values():
            gone.set()
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._thread.stop()
        self._slot.blank()

    def _flush(self) -> None:
        """Called on the engine's thread: hands all outputs of a step to the event loop in one call."""
        if self._outbox:
            outputs = self._outbox.copy()
            self._outbox.clear()
            self._loop.call_soon_threadsafe(self._deliver, outputs)

    def _deliver(self, outputs: list[Output]) -> None:
        for output in outputs:
            if not isinstance(output, (Counted, Reply, Head, Chunk, Done)):  # does not belong to a request
                self._emit(output)
            elif output.request in self._live:  # it may have been aborted after the step
                if isinstance(output, (Reply, Done)):
                    self._live.discard(output.request)
                self._emit(output)
