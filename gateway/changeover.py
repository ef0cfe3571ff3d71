"""Changes the scheduling policy while the gateway runs, by replacing one `Scheduler` with another.

First the old scheduler lets running requests finish, while requests that wait or arrive are kept here. Then no
scheduler decides anything, and every worker is made blank. The new scheduler begins as after a start, except that the
processes and the weights in host memory are already there. Finally the kept requests arrive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from msgspec.structs import replace

from config.errors import OperatorError
from config.registry import PolicyName
from enginepool import messages
from enginepool.pool.store import WeightStore
from enginepool.pool.supervisor import Supervisor
from gateway.commands import Commands
from gateway.current_scheduler import CurrentScheduler
from gateway.in_flight import InFlight
from gateway.journal import Journal
from gateway.live import LiveRequest
from scheduler import events
from scheduler.state.entities import Worker
from scheduler.state.phases import Phase


class Changeover:
    """While `emptying`, events go to `hear` and not to a scheduler."""

    def __init__(
        self,
        *,
        live: InFlight,
        scheduler: CurrentScheduler,
        pool: Supervisor,
        store: WeightStore,
        commands: Commands,
        journal: Journal,
        feed: Callable[[events.AnyEvent], None],
    ) -> None:
        self._live = live
        self._scheduler = scheduler
        self._pool = pool
        self._store = store
        self._commands = commands
        self._journal = journal
        self._feed = feed
        self._kept: list[LiveRequest] = []
        self._finished = asyncio.Event()
        self._emptied = asyncio.Event()
        self._blank: dict[int, int] = {}
        """Bytes of device memory that each blank worker holds."""
        self._changing: set[int] = set()
        self._loading: str | None = None
        self.emptying = False

    # the old scheduler ends

    def keep(self, live: LiveRequest) -> None:
        """Keep a request that has arrived until the new scheduler decides."""
        self._kept.append(live)

    async def finish(self, within: float) -> None:
        """Wait until no request runs, for at most `within` seconds.

        Raises:
            OperatorError: some still run.
        """
        for live in list(self._live.values()):
            if live.worker is None and not live.ended:
                self._kept.append(live)
                self._feed(events.Aborted(live.id))
        self.look()
        try:
            async with asyncio.timeout(within):
                await self._finished.wait()
        except TimeoutError:
            running = len(self._scheduler.state.requests)
            policy = self._scheduler.registry.scheduler.policy
            raise OperatorError(
                f"{running} requests still run after {within:g} s; the policy is {policy} as before"
            ) from None

    def look(self) -> None:
        """Notice whether anything still runs; called after every event."""
        if not self._scheduler.state.requests:
            self._finished.set()

    # nobody decides

    async def empty(self, patience: float) -> None:
        """Make every worker blank; those that are not within `patience` seconds are replaced."""
        self.emptying = True
        state = self._scheduler.state
        self._loading = state.host.staging
        for worker in state.workers:
            self._empty(worker)
        self._look_again()
        try:
            async with asyncio.timeout(patience):
                await self._emptied.wait()
        except TimeoutError:
            for number in self._changing:
                self._pool.kill(number, f"not blank after {patience:g} s")
            await self._emptied.wait()

    def hear(self, event: events.AnyEvent) -> None:
        """Follow what becomes of the workers while no scheduler does."""
        match event:
            case events.Activated():
                self._pool.send(event.worker, messages.Park())
            case events.Parked():
                self._pool.send(event.worker, messages.Blank())
            case events.WorkerBlank() | events.ActivationFailed():
                self._changing.discard(event.worker)
                self._blank[event.worker] = event.held
            case events.WorkerDead():
                self._changing.discard(event.worker)
                self._blank.pop(event.worker, None)
            case events.Staged() | events.StageFailed():
                self._loading = None
        self._look_again()

    def _empty(self, worker: Worker) -> None:
        """Send a worker whatever makes it blank next. A new one reports that it is blank by itself."""
        if worker.phase is Phase.STARTING:
            return
        if not worker.leads or _has_nothing(worker):
            self._blank[worker.number] = worker.held_blank or 0
            return
        self._changing.add(worker.number)
        if worker.phase in (Phase.ACTIVE, Phase.DRAINING):
            self._pool.send(worker.number, messages.Park())
        elif worker.phase in (Phase.PARKED, Phase.PREPARING) and not worker.tearing:
            self._pool.send(worker.number, messages.Blank())

    def _look_again(self) -> None:
        if not self._changing and self._loading is None:
            self._emptied.set()

    # the new scheduler begins

    def build(self, policy: PolicyName) -> None:
        """Replace the old scheduler with a new one."""
        self._commands.fail_all("the policy was changed meanwhile")
        stored = {name: found.manifest.nbytes for name in self._store.models if (found := self._store.get(name))}
        before = self._scheduler.registry
        registry = replace(before, scheduler=replace(before.scheduler, policy=policy))
        self._scheduler.replace(replace(self._scheduler.setup, registry=registry, staged=stored))

    def tell(self) -> None:
        """Feed the new scheduler what it cannot know: which workers are blank, and what they have decoded so far."""
        for number, held in sorted(self._blank.items()):
            if (stats := self._journal.stats.get(number)) is not None:
                tokens = stats.prompt_tokens, stats.output_tokens  # so that earlier tokens do not count as demand
                self._feed(events.Stats(number, 0, 0, 0, *tokens))
            self._feed(events.WorkerBlank(number, held))

    def release(self, arrive: Callable[[LiveRequest], None]) -> None:
        """Let the kept requests arrive in their order, except those whose client is gone."""
        for live in self._kept:
            if not live.ended:
                arrive(live)


def _has_nothing(worker: Worker) -> bool:
    """Whether a worker's process holds no model, even if one has been chosen for it."""
    if worker.phase is Phase.PREPARING:
        return worker.pending is not None and worker.pending.skeleton is None
    return worker.phase is Phase.BLANK
