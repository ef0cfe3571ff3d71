"""Turns workers' messages into events for the scheduler, and passes their answers on to clients."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import assert_never

from msgspec.structs import replace

from config.errors import RequestError
from enginepool import messages
from enginepool.messages import Chunk
from gateway.in_flight import InFlight
from gateway.journal import Journal
from gateway.live import LiveRequest
from gateway.metrics import Metrics
from gateway.offers import Offers
from gateway.server_paths import ServerPaths
from scheduler import events

log = logging.getLogger("prism.gateway")


@dataclass(frozen=True, slots=True, kw_only=True)
class Signals:
    """Implements `enginepool.pool.supervisor.PoolEvents`."""

    live: InFlight
    offers: Offers
    ordered_at: dict[int, float]
    """Monotonic seconds at which each worker's current activation was ordered; noted by `Effects`."""
    metrics: Metrics
    journal: Journal
    paths: ServerPaths
    feed: Callable[[events.AnyEvent], None]
    """Gives the scheduler an event."""
    abandon: Callable[[LiveRequest], None]
    """Gives up a request whose client reads too slowly."""

    def worker_message(self, worker: int, message: messages.FromWorker) -> None:
        if isinstance(message, Chunk):  # there is one for every token, and `match` would take twice as long
            self._chunk(message)
            return
        match message:
            case messages.Head():
                self._head(message)
            case messages.Done():
                self._done(message)
            case messages.Reply():
                self._reply(message)
            case messages.Counted():
                self.feed(events.Counted(message.request, message.prompt_tokens))
            case messages.Pong():
                pass  # the supervisor has noted that the worker answers
            case messages.WorkerStats():
                self._worker_stats(worker, message)
            case _:
                self._change(worker, message)

    def _change(self, worker: int, message: messages.WorkerChange) -> None:
        match message:
            case messages.WorkerReady():
                self._worker_ready(worker, message)
            case messages.WorkerCopied():
                self.feed(events.Copied(worker))
            case messages.Rehearsing():
                self.feed(events.Rehearsing(worker, message.begins))
            case messages.WorkerActivated():
                self._worker_activated(worker, message)
            case messages.WorkerFailed():
                self._worker_failed(worker, message)
            case messages.WorkerParked():
                self._worker_parked(worker, message)
            case messages.WorkerBlanked():
                self._worker_blanked(worker, message)
            case messages.KvLimitApplied():
                self.feed(events.LimitApplied(worker, message.revision, message.mapped, message.applied))
            case _:
                assert_never(message)

    def worker_dead(self, worker: int, reason: str) -> None:
        self.metrics.worker_deaths.inc()
        self.journal.worker_dead(worker, reason)
        self.live.requeue((worker,))
        self.feed(events.WorkerDead(worker, reason))

    def device_fault(self, device: str, workers: Sequence[int], reason: str, suspected: bool) -> None:
        self.metrics.worker_deaths.inc(len(workers))
        self.journal.device_fault(device, workers, reason)
        self.live.requeue(workers)
        self.feed(events.DeviceFault(device, tuple(workers), reason, suspected))

    # answers

    def _chunk(self, message: Chunk) -> None:
        live = self.live.get(message.request)
        if live is None or live.ended:
            return
        if live.first_token_at is None:
            self._mark_first_token(live)
        if not live.chunk(message.data):
            log.warning("request %d of %s is dropped: its client reads too slowly", live.id, live.model)
            assert live.stream is not None
            live.stream.drop()
            self.abandon(live)

    def _mark_first_token(self, live: LiveRequest) -> None:
        live.first_token_at = time.monotonic()
        self.metrics.first_token(live)
        self.feed(events.FirstToken(live.id))

    def _head(self, message: messages.Head) -> None:
        live = self.live.get(message.request)
        if live is not None and not live.ended:
            live.head(message)

    def _done(self, message: messages.Done) -> None:
        live = self.live.get(message.request)
        if live is None or live.ended:
            return
        text = self.paths.hide(message.error)
        error = RequestError(500, text, kind="server_error", code="engine_error") if text else None
        live.done(error)
        self.metrics.finished(live, 500 if error else 200, message.prompt_tokens, message.output_tokens)
        self.feed(events.Finished(live.id, message.output_tokens))

    def _reply(self, message: messages.Reply) -> None:
        live = self.live.get(message.request)
        if live is None or live.ended:
            return
        if message.status < 400:
            live.first_token_at = time.monotonic()
            self.metrics.first_token(live)
        else:
            message = replace(message, body=self.paths.hide_in_answer(message.body))
        live.reply(message)
        self.metrics.finished(live, message.status, message.prompt_tokens, message.output_tokens)
        self.feed(events.Finished(live.id, message.output_tokens))

    # workers

    def _worker_stats(self, worker: int, stats: messages.WorkerStats) -> None:
        self.journal.stats[worker] = stats
        load = (stats.running, stats.waiting, stats.kv_mapped)
        self.feed(events.Stats(worker, *load, stats.prompt_tokens, stats.output_tokens, stats.held))

    def _worker_ready(self, worker: int, message: messages.WorkerReady) -> None:
        log.info("worker %d is ready: pid %d, %s", worker, message.pid, message.engine)
        self.offers.offer_all(worker)
        self.feed(events.WorkerBlank(worker, message.held))

    def _worker_activated(self, worker: int, message: messages.WorkerActivated) -> None:
        seconds = time.monotonic() - self.ordered_at.pop(worker)
        self.metrics.activated(message.model, seconds)
        self.journal.activated(worker, seconds, message)
        self.feed(events.Activated(worker, message.model, seconds, message.held))

    def _worker_failed(self, worker: int, message: messages.WorkerFailed) -> None:
        self.ordered_at.pop(worker, None)
        log.error("activating %s on worker %d failed: %s", message.model, worker, message.reason)
        self.feed(events.ActivationFailed(worker, message.model, message.reason, message.held))

    def _worker_parked(self, worker: int, message: messages.WorkerParked) -> None:
        self.metrics.evictions.labels(message.model).inc()
        self.feed(events.Parked(worker, message.model, message.held))

    def _worker_blanked(self, worker: int, message: messages.WorkerBlanked) -> None:
        self.journal.blanked(worker, message)
        self.feed(events.WorkerBlank(worker, message.held))
