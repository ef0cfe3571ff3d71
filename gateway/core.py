"""The core of the gateway: takes requests and commands in, feeds the scheduler and has its decisions carried out.

Everything here runs on one event loop and never blocks, so there are no locks. A request passes through
`gateway.http` → `Gateway.admit` → scheduler → `gateway.effects` → worker → `gateway.signals` → `gateway.live` → client.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from pathlib import Path

from config.errors import OperatorError, RequestError
from config.registry import PolicyName, Registry
from enginepool import messages
from enginepool.pool.store import WeightStore
from enginepool.pool.supervisor import Supervisor
from gateway.catalog import Catalog
from gateway.changeover import Changeover
from gateway.commands import Commands
from gateway.current_scheduler import CurrentScheduler, setup_of
from gateway.effects import Effects
from gateway.in_flight import InFlight
from gateway.journal import Journal
from gateway.live import LiveRequest
from gateway.loads import Loads
from gateway.metrics import Metrics
from gateway.offers import Offers
from gateway.routing import body_digest, estimate_prompt_tokens
from gateway.server_paths import ServerPaths
from gateway.signals import Signals
from gateway.stuck import kill_stuck
from gateway.tasks import Tasks
from scheduler import events
from scheduler.driver import Driver

log = logging.getLogger("prism.gateway")

TICK = 0.1
"""Seconds between two ticks of the scheduler."""


class Gateway:
    """Builds the gateway's parts and gives each what it needs.

    They form a loop that closes at `feed`: an event makes the scheduler decide, `Effects` carries the decisions out on
    the pool, and `Signals` turns what the pool's workers answer into events.

    With `record`, all events and decisions are written to that file.
    """

    def __init__(
        self, registry: Registry, run_dir: Path, *, validate: bool = False, record: Path | None = None
    ) -> None:
        self.draining = ""
        """Why new requests are refused; empty while they are accepted."""
        self._numbers = itertools.count(1)
        self._changeover: Changeover | None = None
        self._stopped = False

        self.catalog = Catalog(registry)
        self.scheduler = CurrentScheduler(setup_of(registry, validate=validate), record)
        self.live = InFlight()
        self.journal = Journal([worker.device for worker in self.scheduler.state.workers])
        self.metrics = Metrics(lambda: self.scheduler.state, self.live)
        self.pool = Supervisor(registry.pool, run_dir)
        self._store = WeightStore(self.pool.forks)
        self._tasks = Tasks()
        self._commands = Commands(self._numbers, self.feed)
        paths = ServerPaths(registry.models)
        offers = Offers(pool=self.pool, store=self._store, catalog=self.catalog)
        loads = Loads(store=self._store, catalog=self.catalog, offers=offers, tasks=self._tasks, feed=self.feed)
        self.loading = loads.progress
        ordered_at: dict[int, float] = {}
        effects = Effects(
            live=self.live,
            scheduler=self.scheduler,
            pool=self.pool,
            store=self._store,
            catalog=self.catalog,
            loads=loads,
            offers=offers,
            commands=self._commands,
            ordered_at=ordered_at,
            metrics=self.metrics,
            journal=self.journal,
            paths=paths,
        )
        self._signals = Signals(
            live=self.live,
            offers=offers,
            ordered_at=ordered_at,
            metrics=self.metrics,
            journal=self.journal,
            paths=paths,
            feed=self.feed,
            abandon=self.abandon,
        )
        self._driver = Driver(self.scheduler.handle, effects.carry_out)

    @property
    def registry(self) -> Registry:
        """The registry, with the current policy."""
        return self.scheduler.registry

    @property
    def changing(self) -> bool:
        """Whether the policy is being changed; new requests wait meanwhile."""
        return self._changeover is not None

    async def start(self) -> None:
        """Start the pool. Requests may arrive right away: they wait for workers.

        Raises:
            PoolError: the template does not start, or MPS cannot be had where the registry insists on it.
        """
        await self.pool.start(self._signals)
        self._tasks.spawn(self._tick())

    async def stop(self, grace: float) -> None:
        """Refuse new requests, give running ones `grace` seconds to finish, then end all processes."""
        self.draining = "the gateway is stopping"
        if self.live:
            await asyncio.wait((asyncio.create_task(self.live.drained()),), timeout=grace)
        if self.live:
            log.warning("%d requests did not finish in time", len(self.live))
        self._stopped = True
        for live in list(self.live.values()):
            live.done(RequestError(503, "The gateway is stopping.", kind="server_error", code="stopping"))
        await self._tasks.stop()
        await self.pool.stop()
        self._store.close()
        self.scheduler.close()

    # requests, from gateway.http

    def admit(self, model: str, path: str, body: bytes, slo: float) -> LiveRequest:
        """Take a request in. The caller awaits its `answer`, and must `release` it whatever happens.

        Raises:
            RequestError: 503; the gateway is draining.
        """
        if self.draining:
            raise RequestError(
                503, f"No new requests: {self.draining}.", kind="server_error", code="draining", retry_after=5.0
            )
        live = LiveRequest(next(self._numbers), model, path, body, slo)
        self.live.add(live)
        if self._changeover is None:
            self._arrive(live)
        else:
            self._changeover.keep(live)
        return live

    def _arrive(self, live: LiveRequest) -> None:
        tokens, digest = estimate_prompt_tokens(live.body), body_digest(live.path, live.body)
        self.feed(events.Arrived(live.id, live.model, tokens, live.deadline, digest))

    def release(self, live: LiveRequest) -> None:
        """Forget a request whose client has its answer or is gone; if it is gone, the worker drops the request."""
        self.live.remove(live)
        if not live.ended:
            self.abandon(live)

    def abandon(self, live: LiveRequest) -> None:
        """Give up a request: nobody wants the rest of its answer."""
        live.ended = True
        if live.worker is not None:
            self.pool.send(live.worker, messages.Abort(live.id))
        self.metrics.aborted(live)
        self.feed(events.Aborted(live.id))

    # commands, from gateway.admin

    async def activate(self, model: str, worker: int | None) -> str:
        """Activate a model, on `worker` if given, and wait until it serves; returns what happened, for people.

        Raises:
            OperatorError: it failed; the text says why.
        """
        return await self._commands.run(lambda number: events.OperatorActivate(number, model, worker))

    async def evict(self, model: str, now: bool) -> str:
        """Evict a model, with `now` without waiting for its running requests; returns what happened, for people.

        Raises:
            OperatorError: it failed; the text says why.
        """
        return await self._commands.run(lambda number: events.OperatorEvict(number, model, now))

    async def change_policy(self, policy: PolicyName, within: float) -> str:
        """Switch to another policy, or start afresh under the same one. New requests wait meanwhile.

        Running requests have `within` seconds to finish.

        Raises:
            OperatorError: they did not finish, and nothing has changed; or another change is under way.
        """
        if self._changeover is not None:
            raise OperatorError("a change of the policy is under way already")
        changeover = self._changeover = self._new_changeover()
        try:
            await changeover.finish(within)
        except BaseException:
            self._changeover = None
            changeover.release(self._arrive)
            raise
        before = self.registry.scheduler.policy
        await asyncio.shield(self._tasks.spawn(self._change_over(changeover, policy)))
        return f"the policy is {policy}, and was {before}"

    def _new_changeover(self) -> Changeover:
        return Changeover(
            live=self.live,
            scheduler=self.scheduler,
            pool=self.pool,
            store=self._store,
            commands=self._commands,
            journal=self.journal,
            feed=self.feed,
        )

    async def _change_over(self, changeover: Changeover, policy: PolicyName) -> None:
        """Root of the task that changes the policy; it is never cancelled half way."""
        before = self.registry
        await changeover.empty(before.pool.transition_timeout)
        changeover.build(policy)
        self.journal.policy_changed(before.scheduler.policy, policy)
        self._changeover = None
        changeover.tell()
        changeover.release(self._arrive)

    # the scheduler

    def feed(self, event: events.AnyEvent) -> None:
        """Give the scheduler an event and have its decisions carried out; events that these cause are handled next."""
        if self._stopped:
            return
        if self._changeover is not None and self._changeover.emptying:
            self._changeover.hear(event)
            return
        self._driver.feed(event, time.monotonic())
        if self._changeover is not None:
            self._changeover.look()

    async def _tick(self) -> None:
        """Root of the task that tells the scheduler, every `TICK`, that time has passed."""
        while True:
            await asyncio.sleep(TICK)
            if self._changeover is None:
                kill_stuck(self.pool, self.scheduler.state, self.registry.pool.transition_timeout, time.monotonic())
            self.feed(events.Tick())
