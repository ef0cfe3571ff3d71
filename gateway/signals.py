"""Turns what workers say into events for the scheduler, and passes their answers on to clients."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from msgspec.structs import replace

from config.errors import RequestError
from enginepool import messages
from gateway import offers
from gateway.context import Context
from gateway.live import LiveRequest
from scheduler import events

log = logging.getLogger("prism.gateway")


class Signals:
    """Implements `enginepool.pool.supervisor.PoolEvents`. `_chunk` runs for every token: keep it short."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._by_type: dict[type[Any], Callable[[int, Any], None]] = {
            messages.Chunk: self._chunk,
            messages.Head: self._head,
            messages.Done: self._done,
            messages.Reply: self._reply,
            messages.Counted: self._counted,
            messages.Pong: self._pong,
            messages.WorkerStats: self._worker_stats,
            messages.WorkerReady: self._worker_ready,
            messages.WorkerCopied: self._worker_copied,
            messages.Rehearsing: self._rehearsing,
            messages.WorkerActivated: self._worker_activated,
            messages.WorkerFailed: self._worker_failed,
            messages.WorkerParked: self._worker_parked,
            messages.WorkerBlanked: self._worker_blanked,
            messages.KvLimitApplied: self._kv_limit_applied,
        }

    def worker_message(self, worker: int, message: messages.FromWorker) -> None:
        self._by_type[type(message)](worker, message)

    def worker_dead(self, worker: int, reason: str) -> None:
        self._context.metrics.worker_deaths.inc()
        self._context.journal.worker_dead(worker, reason)
        for live in self._context.live.values():
            if live.worker == worker and live.first_token_at is None:
                live.requeue()
        self._context.feed(events.WorkerDead(worker, reason))

    def device_fault(self, device: str, workers: Sequence[int], reason: str, suspected: bool) -> None:
        self._context.metrics.worker_deaths.inc(len(workers))
        self._context.journal.device_fault(device, workers, reason)
        for live in self._context.live.values():
            if live.worker in workers and live.first_token_at is None:
                live.requeue()
        self._context.feed(events.DeviceFault(device, tuple(workers), reason, suspected))

    def _chunk(self, worker: int, message: messages.Chunk) -> None:
        live = self._context.live.get(message.request)
        if live is None or live.ended:
            return
        if live.first_token_at is None:
            self._mark_first_token(live)
        if not live.chunk(message.data):
            log.warning("request %d of %s is dropped: its client reads too slowly", live.id, live.model)
            assert live.stream is not None
            live.stream.drop()
            self._context.abandon(live)

    def _mark_first_token(self, live: LiveRequest) -> None:
        live.first_token_at = time.monotonic()
        self._context.metrics.first_token(live)
        self._context.feed(events.FirstToken(live.id))

    def _head(self, worker: int, message: messages.Head) -> None:
        live = self._context.live.get(message.request)
        if live is not None and not live.ended:
            live.head(message)

    def _done(self, worker: int, message: messages.Done) -> None:
        live = self._context.live.get(message.request)
        if live is None or live.ended:
            return
        text = self._context.paths.hide(message.error)
        error = RequestError(500, text, kind="server_error", code="engine_error") if text else None
        live.done(error)
        self._context.metrics.finished(live, 500 if error else 200, message.prompt_tokens, message.output_tokens)
        self._context.feed(events.Finished(live.id, message.output_tokens))

    def _reply(self, worker: int, message: messages.Reply) -> None:
        live = self._context.live.get(message.request)
        if live is None or live.ended:
            return
        if message.status < 400:
            live.first_token_at = time.monotonic()
            self._context.metrics.first_token(live)
        else:
            message = replace(message, body=self._context.paths.hide_in_answer(message.body))
        live.reply(message)
        self._context.metrics.finished(live, message.status, message.prompt_tokens, message.output_tokens)
        self._context.feed(events.Finished(live.id, message.output_tokens))

    def _counted(self, worker: int, message: messages.Counted) -> None:
        self._context.feed(events.Counted(message.request, message.prompt_tokens))

    def _pong(self, worker: int, message: messages.Pong) -> None:
        """The supervisor has noted that something came; that is all a pong is for."""

    def _worker_stats(self, worker: int, stats: messages.WorkerStats) -> None:
        self._context.journal.stats[worker] = stats
        self._context.feed(
            events.Stats(
                worker,
                stats.running,
                stats.waiting,
                stats.kv_mapped,
                stats.prompt_tokens,
                stats.output_tokens,
                stats.held,
            )
        )

    def _worker_ready(self, worker: int, message: messages.WorkerReady) -> None:
        log.info("worker %d is ready: pid %d, %s", worker, message.pid, message.engine)
        offers.offer_all(self._context, worker)
        self._context.feed(events.WorkerBlank(worker, message.held))

    def _worker_copied(self, worker: int, message: messages.WorkerCopied) -> None:
        self._context.feed(events.Copied(worker))

    def _rehearsing(self, worker: int, message: messages.Rehearsing) -> None:
        self._context.feed(events.Rehearsing(worker, message.begins))

    def _worker_activated(self, worker: int, message: messages.WorkerActivated) -> None:
        seconds = time.monotonic() - self._context.activating.pop(worker)
        self._context.metrics.activated(message.model, seconds)
        self._context.journal.activated(worker, seconds, message)
        self._context.feed(events.Activated(worker, message.model, seconds, message.held))

    def _worker_failed(self, worker: int, message: messages.WorkerFailed) -> None:
        self._context.activating.pop(worker, None)
        log.error("activating %s on worker %d failed: %s", message.model, worker, message.reason)
        self._context.feed(events.ActivationFailed(worker, message.model, message.reason, message.held))

    def _worker_parked(self, worker: int, message: messages.WorkerParked) -> None:
        self._context.metrics.evictions.labels(message.model).inc()
        self._context.feed(events.Parked(worker, message.model, message.held))

    def _worker_blanked(self, worker: int, message: messages.WorkerBlanked) -> None:
        self._context.journal.blanked(worker, message)
        self._context.feed(events.WorkerBlank(worker, message.held))

    def _kv_limit_applied(self, worker: int, message: messages.KvLimitApplied) -> None:
        self._context.feed(events.LimitApplied(worker, message.revision, message.mapped, message.applied))
