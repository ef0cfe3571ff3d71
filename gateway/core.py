"""The gateway's heart: requests and commands come in, the scheduler is fed, its decisions are carried out.

Everything here runs on one event loop and nothing waits, so there are no locks. A request's way:
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
from gateway.http.routing import body_digest, estimate_prompt_tokens
from gateway.http.server_paths import ServerPaths
from gateway.in_flight import InFlight
from gateway.journal import Journal
from gateway.live import LiveRequest
from gateway.loads import Loads
from gateway.metrics import Metrics
from gateway.offers import Offers
from gateway.signals import Signals
from gateway.stuck import kill_stuck
from gateway.tasks import Tasks
from scheduler import events
from scheduler.driver import Driver

log = logging.getLogger("prism.gateway")

TICK = 0.1
"""Seconds between two ticks of the scheduler."""


class Gateway:
    """Builds the parts and closes their circle: an event goes in at `feed`, and what comes of it ends there again.

    With `record`, what the scheduler is told and decides is written to that file.
    """

    def __init__(
        self, registry: Registry, run_dir: Path, *, validate: bool = False, record: Path | None = None
    ) -> None:
        self.draining = ""
        """Why new requests are refused; empty while they are not."""
        self._numbers = itertools.count(1)
        self._changeover: Changeover | None = None
        self._stopped = False

        self.catalog = Catalog(registry)
        self.scheduler = CurrentScheduler(setup_of(registry, validate=validate), record)
        self.live = InFlight()
        self.journal = Journal()
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
        """With the policy of now."""
        return self.scheduler.registry

    @property
    def changing(self) -> bool:
        """Whether the policy is being changed, for which new requests wait."""
        return self._changeover is not None

    async def start(self) -> None:
        """Start the pool. Requests may come at once: they wait for workers.

        Raises:
            PoolError: the template does not start.
        """
        await self.pool.start(self._signals)
        self._tasks.spawn(self._tick())

    async def stop(self, grace: float) -> None:
        """Refuse what is new, let what runs finish within `grace` seconds, end all processes."""
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
        """Take a request in; the caller awaits its `answer` and must `release` it in any case.

        Raises:
            RequestError: 503; the gateway drains.
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
        """The client has its answer or is gone; in the latter case the worker drops the request."""
        self.live.remove(live)
        if not live.ended:
            self.abandon(live)

    def abandon(self, live: LiveRequest) -> None:
        """Nobody wants the rest of this answer."""
        live.ended = True
        if live.worker is not None:
            self.pool.send(live.worker, messages.Abort(live.id))
        self.metrics.aborted(live)
        self.feed(events.Aborted(live.id))

    # commands, from gateway.admin

    async def activate(self, model: str, worker: int | None) -> str:
        """
        Raises:
            OperatorError: it failed; the text says why.
        """
        return await self._commands.run(lambda number: events.OperatorActivate(number, model, worker))

    async def evict(self, model: str, now: bool) -> str:
        """
        Raises:
            OperatorError: it failed; the text says why.
        """
        return await self._commands.run(lambda number: events.OperatorEvict(number, model, now))

    async def change_policy(self, policy: PolicyName, within: float) -> str:
        """Go on under another policy, or begin anew under the same; requests wait meanwhile.

        What runs is to finish within `within` seconds.

        Raises:
            OperatorError: it did not, and nothing has changed; or another change is under way.
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
        """Root of the task of a change; nobody can stop it half way."""
        before = self.registry
        await changeover.empty(before.pool.transition_timeout)
        changeover.build(policy)
        self.journal.policy_changed(before.scheduler.policy, policy)
        self._changeover = None
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
        self._driver.feed(event, time.monotonic())
        if self._changeover is not None:
            self._changeover.look()

    async def _tick(self) -> None:
        """Root of the task that tells the scheduler that time passes."""
        while True:
            await asyncio.sleep(TICK)
            if self._changeover is None:
                kill_stuck(self.pool, self.scheduler.state, self.registry.pool.transition_timeout, time.monotonic())
            self.feed(events.Tick())
