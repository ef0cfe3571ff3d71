"""The worker's side of the SGLang engine: everything here runs on the worker's event loop."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Coroutine
from typing import Any

from config.errors import EngineError, PoolError, RequestError, StoreError
from config.gpus import VISIBLE
from config.registry import WorkLimits
from enginepool.engine import Emit, EngineLoad
from enginepool.engines.phases import Phases
from enginepool.engines.sglang.front.asgi import Exchange
from enginepool.engines.sglang.front.grammar_checker import GrammarChecker
from enginepool.engines.sglang.front.kernel_warmup import KernelWarmup, Traffic, mark_for
from enginepool.engines.sglang.front.large_requests import LargeRequests
from enginepool.engines.sglang.front.own_template import OWN_TEMPLATE, refuse_own_template
from enginepool.engines.sglang.front.rank_process import RankProcess
from enginepool.engines.sglang.front.rank_watch import RankWatch
from enginepool.engines.sglang.front.requests import CURRENT, FrontRequest
from enginepool.engines.sglang.front.skeleton import KvLimit, SglangSkeleton
from enginepool.engines.sglang.protocol import (
    Event,
    KvLimitSet,
    OfferSegment,
    StartRank,
    Weights,
    WeightsCopied,
    WithdrawSegment,
)
from enginepool.engines.sglang.sockets import remove_kv_file, sweep
from enginepool.engines.sglang.tokenizers import FRONT, preload_tokenizers
from enginepool.messages import (
    Counted,
    KvLimitApplied,
    Manifest,
    ModelSpec,
    Rehearsing,
    Reply,
    SegmentRef,
    Submit,
    WorkerCopied,
)
from enginepool.openai.answers import JSON
from enginepool.openai.errors import error_body, server_error
from enginepool.openai.routes import INFERENCE_ROUTES
from enginepool.own_thread import LARGE
from enginepool.process import DEVICE_FAULT_EXIT

log = logging.getLogger("prism.sglang")


class SglangEngine:
    """Serves one model at a time."""

    name = "sglang"

    def __init__(self, emit: Emit, start: StartRank, limits: WorkLimits | None = None) -> None:
        # First of all, because the rank is forked, and a fork does not copy threads that are started below.
        self._rank = RankProcess(start, self._on_rank_event)
        self._rank.died.add_done_callback(self._on_rank_died)
        if start.device != "cpu":
            os.environ[VISIBLE] = ""  # SGLang's code in this process must not touch the rank's GPU
        sweep()
        self._emit = emit
        self._limits = limits or WorkLimits()
        self._large_requests = LargeRequests(self._limits.preparation)
        self._grammars = GrammarChecker(self._limits.grammar_time)
        self.held = 0
        self.copy_seconds = 0.0
        self._live: dict[int, FrontRequest] = {}
        self._traffic = Traffic()
        self._tasks: set[asyncio.Task[None]] = set()
        self._rank_tasks: set[asyncio.Task[None]] = set()
        self._rank_lock = asyncio.Lock()
        """Held during a command to the rank, whose answers come in the order of the commands."""
        self._skeleton: SglangSkeleton | None = None
        self._warmup: KernelWarmup | None = None
        self._active = False
        self._reading = asyncio.Event()
        self._reading.set()
        self.load = EngineLoad()
        self._watch = RankWatch(self._rank, start, self.load, has_model=lambda: self._skeleton is not None)

    async def start(self) -> None:
        self.held = await self._rank.ready()

    # the model

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
        if self._active:
            raise EngineError(f"{model.name}: another model is active")
        if manifest is None or segment is None:
            raise EngineError(f"{model.name}: this engine needs the weights in host memory")
        async with self._rank_lock:
            return await self._activate(model, Weights(manifest, segment, verify), KvLimit(kv_limit, kv_revision))

    async def _activate(self, model: ModelSpec, weights: Weights, limit: KvLimit) -> dict[str, float]:
        phases = Phases()
        if self._skeleton is not None and (self._skeleton.spec, self._skeleton.manifest) == (model, weights.manifest):
            await self._revive(self._skeleton, weights, limit, phases)
        else:
            await self._tear_down(Phases())
            phases.end("teardown")
            self._skeleton = await SglangSkeleton.build(model, weights, limit, self._rank, phases)
            self._skeleton.layer.manager.bind(self._limits, self._grammars)
        self.held, self.copy_seconds = self._skeleton.held, self._skeleton.copy_seconds
        self._active = True
        self._start_warmup(self._skeleton)
        return phases.seconds

    def _start_warmup(self, skeleton: SglangSkeleton) -> None:
        """Start warming up kernels, unless that was done on this machine."""
        mark = mark_for(skeleton.manifest.key)
        if mark is None or mark.exists():
            return
        self._warmup = KernelWarmup(mark, self._run, skeleton.layer.manager, self._traffic)
        self._emit(Rehearsing(begins=True))  # must precede WorkerActivated
        self._begin(self._run_warmup(self._warmup))

    async def _run_warmup(self, warmup: KernelWarmup) -> None:
        try:
            await warmup.perform()
        finally:
            self._emit(Rehearsing(begins=False))

    async def park(self) -> str:
        if self._skeleton is None:
            raise EngineError("no model to park")
        if self._warmup is not None:
            self._warmup.stop()
            self._warmup = None
        await self._let_tasks_end()
        async with self._rank_lock:
            self.held = await self._skeleton.park()
            self._clear_load()
            self._active = False
            return self._skeleton.spec.name

    async def blank(self) -> dict[str, float]:
        phases = Phases()
        async with self._rank_lock:
            await self._tear_down(phases)
        return phases.seconds

    async def _tear_down(self, phases: Phases) -> None:
        self._active = False
        if self._skeleton is not None:
            skeleton, self._skeleton = self._skeleton, None
            self.held = await skeleton.tear_down(phases)
            self._clear_load()

    def _clear_load(self) -> None:
        self.load.kv_mapped = self.load.kv_bytes = self.load.held = 0
        self.load.batch = 0.0

    async def close(self) -> None:
        self._watch.close()
        for task in self._rank_tasks:
            task.cancel()
        for live in list(self._live.values()):
            self.abort(live.id)
        for task in self._tasks:
            task.cancel()
        await self._let_tasks_end()
        if self._skeleton is not None:
            await self._skeleton.close()
            self._skeleton = None
        self._grammars.close()
        await self._watch.leave_gpu()
        self._rank.close()
        remove_kv_file()

    # its requests

    def submit(self, request: Submit) -> None:
        refusal = self._refusal(request)
        if refusal is not None:
            self._emit(Reply(request.request, refusal.status, JSON, error_body(refusal), 0, 0))
            return
        live = FrontRequest(request, self.load, self._on_counted)
        self._live[live.id] = live
        self._traffic.begin()
        self._begin(self._run(live, self._emit))

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Run `work` in a task that must end before the model is parked."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def abort(self, request: int) -> None:
        live = self._forget(request)
        if live is not None and self._skeleton is not None:
            self._skeleton.layer.manager.abort(live)

    def set_kv_limit(self, revision: int, nbytes: int) -> None:
        self._queue_for_rank(self._limit_kv(KvLimit(nbytes, revision)))

    def offer(self, model: ModelSpec, segment: SegmentRef) -> None:
        asyncio.get_running_loop().run_in_executor(None, preload_tokenizers, model.path, FRONT)
        self._queue_for_rank(self._tell(OfferSegment(model, segment)))

    def withdraw(self, model: str) -> None:
        self._queue_for_rank(self._tell(WithdrawSegment(model)))

    def hold(self, paused: bool) -> None:
        if paused:
            self._reading.clear()
        else:
            self._reading.set()

    def _refusal(self, request: Submit) -> RequestError | None:
        if request.path not in INFERENCE_ROUTES:
            return RequestError(404, f"The engine sglang has no route {request.path}.", code="unknown_url")
        if not self._active:
            message = "No model is active on this worker."
            return RequestError(503, message, kind="server_error", code="not_active")
        return None

    async def _revive(self, skeleton: SglangSkeleton, weights: Weights, limit: KvLimit, phases: Phases) -> None:
        try:
            await skeleton.revive(weights, limit, phases)
        except (EngineError, StoreError):
            await self._tear_down(phases)
            raise

    def _queue_for_rank(self, work: Coroutine[Any, Any, None]) -> None:
        """Talk to the rank in a task of its own, after the exchanges already queued."""
        task = asyncio.get_running_loop().create_task(self._with_rank_lock(work))
        self._rank_tasks.add(task)
        task.add_done_callback(self._rank_tasks.discard)

    async def _with_rank_lock(self, work: Coroutine[Any, Any, None]) -> None:
        """Root of a task that talks to the rank."""
        try:
            async with self._rank_lock:
                await work
        except (EngineError, StoreError, PoolError) as error:
            log.warning("%s", error)
        finally:
            work.close()

    async def _limit_kv(self, limit: KvLimit) -> None:
        if self._active and self._skeleton is not None:
            await self._skeleton.limit_kv(limit)
        else:  # the model was parked in the meantime
            self._emit(KvLimitApplied(limit.revision, 0, applied=True))

    async def _tell(self, command: OfferSegment | WithdrawSegment) -> None:
        await self._rank.tell(command, self._skeleton.layer.command_rank if self._skeleton is not None else None)

    def _on_rank_event(self, event: Event) -> None:
        self._watch.heard += 1
        if isinstance(event, WeightsCopied):
            self._emit(WorkerCopied())
            return
        self.load.kv_mapped = event.mapped
        if isinstance(event, KvLimitSet):
            self._emit(KvLimitApplied(event.revision, event.mapped, event.applied))
        else:
            self.load.kv_bytes, self.load.batch, self.load.held = event.used, event.batch, event.held

    async def _run(self, live: FrontRequest, emit: Emit) -> None:
        """Root of a request's task, in which SGLang's code runs."""
        assert self._skeleton is not None
        layer = self._skeleton.layer
        CURRENT.set(live)
        exchange = Exchange(live, emit, self._reading)
        try:
            await self._serve(layer.app, exchange, live)
        except RequestError as error:
            exchange.fail(error)
        except Exception:
            log.exception("request %d failed", live.id)
            exchange.fail(server_error("The engine failed on this request."))
        finally:
            exchange.close()
            layer.manager.forget(live)
            live.close()
            self._forget(live.id)

    async def _serve(self, app: Any, exchange: Exchange, live: FrontRequest) -> None:
        own_template = OWN_TEMPLATE in live.body
        if own_template and not self._limits.own_templates:
            refuse_own_template(live.body)
        if len(live.body) > LARGE or own_template:
            await self._large_requests.run(app, exchange, live)
        else:
            await app(exchange.scope, exchange.receive, exchange.send)

    def _forget(self, request: int) -> FrontRequest | None:
        live = self._live.pop(request, None)
        if not self._live:
            self._traffic.end()
        return live

    async def _let_tasks_end(self) -> None:
        """Wait for the tasks of requests; those of aborted ones may still be running."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    def _on_counted(self, live: FrontRequest) -> None:
        if not live.aborted:
            self._emit(Counted(live.id, live.prompt_tokens))

    def _on_rank_died(self, died: asyncio.Future[str]) -> None:
        """End this worker, as it cannot live without its rank."""
        log.error("%s; this worker ends", died.result())
        if self._skeleton is not None:
            self._skeleton.remove_files()
        remove_kv_file()
        os._exit(DEVICE_FAULT_EXIT if self._rank.exit_code == DEVICE_FAULT_EXIT else 1)
