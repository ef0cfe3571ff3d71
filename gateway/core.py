"""The gateway's heart: requests and commands come in, the scheduler is fed, its decisions are carried out.

Everything here runs on one event loop and nothing waits, so there are no locks. A request's way:
`gateway.http` → `Gateway.admit` → scheduler → `gateway.effects` → worker → `gateway.signals` → `gateway.live` → client.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import deque
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from config.errors import OperatorError, RequestError
from config.registry import PolicyName, Registry
from enginepool import messages
from enginepool.pool.store import WeightStore
from enginepool.pool.supervisor import Supervisor
from gateway.changeover import Changeover
from gateway.context import Context
from gateway.effects import Effects
from gateway.http.routing import body_digest, estimate_prompt_tokens
from gateway.live import LiveRequest
from gateway.signals import Signals
from scheduler import events
from scheduler.actions import Answer
from scheduler.state.phases import Phase

log = logging.getLogger("prism.gateway")

TICK = 0.1
"""Seconds between two ticks of the scheduler."""
TRANSITIONS = frozenset({Phase.ACTIVATING, Phase.PARKING, Phase.BLANKING})


class Gateway:
    def __init__(
        self, registry: Registry, run_dir: Path, *, validate: bool = False, record: Path | None = None
    ) -> None:
        self.context = Context(registry, self.feed, self.spawn, self.abandon, validate=validate, record=record)
        self.context.pool = Supervisor(registry.pool, run_dir, Signals(self.context))
        self.context.store = WeightStore(self.context.pool.forks)
        self._effects = Effects(self.context)
        self._numbers = itertools.count(1)
        self._inbox: deque[events.AnyEvent] = deque()
        self._busy = False
        self._changeover: Changeover | None = None
        self._stopped = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Start the pool. Requests may come at once: they wait for workers.

        Raises:
            PoolError: the template does not start.
        """
        await self.context.pool.start()
        self.spawn(self._tick())

    async def stop(self, grace: float) -> None:
        """Refuse what is new, let what runs finish within `grace` seconds, end all processes."""
        self.context.draining = "the gateway is stopping"
        if self.context.live:
            await asyncio.wait((asyncio.create_task(self._idle.wait()),), timeout=grace)
        if self.context.live:
            log.warning("%d requests did not finish in time", len(self.context.live))
        self._stopped = True
        for live in list(self.context.live.values()):
            live.done(RequestError(503, "The gateway is stopping.", kind="server_error", code="stopping"))
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.context.pool.stop()
        self.context.store.close()
        if self.context.recorder is not None:
            self.context.recorder.close()

    # requests, from gateway.http

    def admit(self, model: str, path: str, body: bytes, slo: float) -> LiveRequest:
        """Take a request in; the caller awaits its `answer` and must `release` it in any case.

        Raises:
            RequestError: 503; the gateway drains.
        """
        if self.context.draining:
            raise RequestError(
                503, f"No new requests: {self.context.draining}.", kind="server_error", code="draining", retry_after=5.0
            )
        live = LiveRequest(next(self._numbers), model, path, body, slo)
        self.context.live[live.id] = live
        self._idle.clear()
        if self._changeover is None:
            self._arrive(live)
        else:
            self._changeover.keep(live)
        return live

    def _arrive(self, live: LiveRequest) -> None:
        tokens, digest = estimate_prompt_tokens(live.body), body_digest(live.path, live.body)
        self.feed(events.Arrived(live.id, live.model, tokens, live.deadline, digest))

    def release(self, live: LiveRequest) -> None:
        """The client has its answer or is gone; in the latter case the worker drops the request."""
        del self.context.live[live.id]
        if not self.context.live:
            self._idle.set()
        if not live.ended:
            self.abandon(live)

    async def drained(self) -> None:
        """Wait until no request is in flight."""
        await self._idle.wait()

    def abandon(self, live: LiveRequest) -> None:
        """Nobody wants the rest of this answer."""
        live.ended = True
        if live.worker is not None:
            self.context.pool.send(live.worker, messages.Abort(live.id))
        self.context.metrics.aborted(live)
        self.feed(events.Aborted(live.id))

    # commands, from gateway.admin

    async def activate(self, model: str, worker: int | None) -> str:
        """
        Raises:
            OperatorError: it failed; the text says why.
        """
        return await self._command(lambda number: events.OperatorActivate(number, model, worker))

    async def evict(self, model: str, now: bool) -> str:
        """
        Raises:
            OperatorError: it failed; the text says why.
        """
        return await self._command(lambda number: events.OperatorEvict(number, model, now))

    async def _command(self, make: Callable[[int], events.AnyEvent]) -> str:
        number = next(self._numbers)
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.context.answers[number] = future
        try:
            self.feed(make(number))
            answer = await future
        finally:
            del self.context.answers[number]
            if not future.done() or future.cancelled():
                self.feed(events.OperatorGone(number))
        if not answer.ok:
            raise OperatorError(answer.text)
        return answer.text

    async def change_policy(self, policy: PolicyName, within: float) -> str:
        """Go on under another policy, or begin anew under the same; requests wait meanwhile.

        What runs is to finish within `within` seconds.

        Raises:
            OperatorError: it did not, and nothing has changed; or another change is under way.
        """
        if self._changeover is not None:
            raise OperatorError("a change of the policy is under way already")
        changeover = self._begin_changeover()
        try:
            await changeover.finish(within)
        except BaseException:
            self._end_changeover()
            changeover.release(self._arrive)
            raise
        before = self.context.registry.scheduler.policy
        await asyncio.shield(self.spawn(self._change_over(changeover, policy)))
        return f"the policy is {policy}, and was {before}"

    def _begin_changeover(self) -> Changeover:
        self.context.changing = True
        self._changeover = Changeover(self.context)
        return self._changeover

    def _end_changeover(self) -> None:
        self.context.changing = False
        self._changeover = None

    async def _change_over(self, changeover: Changeover, policy: PolicyName) -> None:
        """Root of the task of a change; nobody can stop it half way."""
        before = self.context.registry.scheduler.policy
        await changeover.empty(self.context.registry.pool.transition_timeout)
        changeover.build(policy)
        self.context.journal.policy_changed(before, policy)
        self._end_changeover()
        changeover.tell()
        changeover.release(self._arrive)

    # the scheduler

    def feed(self, event: events.AnyEvent) -> None:
        """Give the scheduler an event and carry out its decisions. Events that these cause come after."""
        if self._stopped:
            return
        if self._changeover is not None and self._changeover.emptying:
            self._changeover.hear(event)
            return
        self._inbox.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._inbox:
                for action in self.context.decide(self._inbox.popleft(), time.monotonic()):
                    self._effects.carry_out(action)
        finally:
            self._busy = False
        if self._changeover is not None:
            self._changeover.look()

    async def _tick(self) -> None:
        """Root of the task that tells the scheduler that time passes."""
        while True:
            await asyncio.sleep(TICK)
            if self._changeover is None:
                self._kill_stuck()
            self.feed(events.Tick())

    def _kill_stuck(self) -> None:
        """A worker that answers pings and yet never ends what it was told to do is of no use."""
        limit = self.context.registry.pool.transition_timeout
        began = time.monotonic() - limit
        state = self.context.scheduler.state
        for worker in state.workers:
            if (worker.phase in TRANSITIONS or worker.tearing) and worker.since < began:
                self.context.pool.kill(worker.number, f"{worker.phase} for more than {limit:g} s")
        for isolation in state.isolations.values():
            if isolation.phase in TRANSITIONS and isolation.since < began:
                self.context.pool.kill(isolation.worker, f"{isolation.phase} for more than {limit:g} s")

    # tasks

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task that `stop` ends."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._task_ended)
        return task

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a task of the gateway failed", exc_info=task.exception())
