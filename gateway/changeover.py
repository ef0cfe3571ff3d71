"""A change of the scheduler's policy while the gateway runs: from one `Scheduler` to the next.

First the old one finishes what runs, while all that waits or arrives is kept here. Then nobody decides anything, and
every worker is emptied. The new one begins as after a start, but that the processes and the weights in host memory are
there; then what was kept arrives.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from msgspec.structs import replace

from config.errors import OperatorError
from config.registry import PolicyName
from enginepool import messages
from gateway.context import Context
from gateway.live import LiveRequest
from scheduler import events
from scheduler.actions import Answer
from scheduler.state.entities import Worker
from scheduler.state.phases import Phase


class Changeover:
    """`emptying` while events are to come to `hear` and not to a scheduler."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._kept: list[LiveRequest] = []
        self._finished = asyncio.Event()
        self._emptied = asyncio.Event()
        self._blank: dict[int, int] = {}
        """What workers that are blank hold, in bytes."""
        self._changing: set[int] = set()
        self._loading: str | None = None
        self.emptying = False
        self._heard: dict[type[Any], Callable[[Any], None]] = {
            events.Activated: self._activated,
            events.ActivationFailed: self._is_blank,
            events.Parked: self._parked,
            events.WorkerBlank: self._is_blank,
            events.WorkerDead: self._dead,
            events.Staged: self._loaded,
            events.StageFailed: self._loaded,
        }

    # the old scheduler ends

    def keep(self, live: LiveRequest) -> None:
        """A request has arrived."""
        self._kept.append(live)

    async def finish(self, within: float) -> None:
        """Wait until nothing runs, for at most `within` seconds.

        Raises:
            OperatorError: something runs still.
        """
        for live in list(self._context.live.values()):
            if live.worker is None and not live.ended:
                self._kept.append(live)
                self._context.feed(events.Aborted(live.id))
        self.look()
        try:
            async with asyncio.timeout(within):
                await self._finished.wait()
        except TimeoutError:
            running = len(self._context.scheduler.state.requests)
            policy = self._context.registry.scheduler.policy
            raise OperatorError(
                f"{running} requests still run after {within:g} s; the policy is {policy} as before"
            ) from None

    def look(self) -> None:
        """To be called after every event."""
        if not self._context.scheduler.state.requests:
            self._finished.set()

    # nobody decides

    async def empty(self, patience: float) -> None:
        """Have every worker blank; one that is not after `patience` seconds is replaced."""
        self.emptying = True
        state = self._context.scheduler.state
        self._loading = state.host.staging
        for worker in state.workers:
            self._empty(worker)
        self._look_again()
        try:
            async with asyncio.timeout(patience):
                await self._emptied.wait()
        except TimeoutError:
            for number in self._changing:
                self._context.pool.kill(number, f"not blank after {patience:g} s")
            await self._emptied.wait()

    def hear(self, event: events.AnyEvent) -> None:
        """What no scheduler is told."""
        heard = self._heard.get(type(event))
        if heard is not None:
            heard(event)
            self._look_again()

    def _empty(self, worker: Worker) -> None:
        """Tell a worker what leads to its being blank. One that is new says so itself."""
        if worker.phase is Phase.STARTING:
            return
        if not worker.leads or _has_nothing(worker):
            self._blank[worker.number] = worker.held_blank or 0
            return
        self._changing.add(worker.number)
        if worker.phase in (Phase.ACTIVE, Phase.DRAINING):
            self._context.pool.send(worker.number, messages.Park())
        elif worker.phase in (Phase.PARKED, Phase.PREPARING) and not worker.tearing:
            self._context.pool.send(worker.number, messages.Blank())

    def _activated(self, event: events.Activated) -> None:
        self._context.pool.send(event.worker, messages.Park())

    def _parked(self, event: events.Parked) -> None:
        self._context.pool.send(event.worker, messages.Blank())

    def _is_blank(self, event: events.WorkerBlank | events.ActivationFailed) -> None:
        self._changing.discard(event.worker)
        self._blank[event.worker] = event.held

    def _dead(self, event: events.WorkerDead) -> None:
        self._changing.discard(event.worker)
        self._blank.pop(event.worker, None)

    def _loaded(self, event: events.Staged | events.StageFailed) -> None:
        self._loading = None

    def _look_again(self) -> None:
        if not self._changing and self._loading is None:
            self._emptied.set()

    # the new scheduler begins

    def build(self, policy: PolicyName) -> None:
        """Put a new scheduler in the old one's place."""
        context = self._context
        for number, answer in context.answers.items():
            if not answer.done():
                answer.set_result(Answer(number, False, "the policy was changed meanwhile"))
        stored = {name: found.manifest.nbytes for name in context.store.models if (found := context.store.get(name))}
        registry = replace(context.registry, scheduler=replace(context.registry.scheduler, policy=policy))
        context.begin(replace(context.setup, registry=registry, staged=stored))

    def tell(self) -> None:
        """Feed the new scheduler what it cannot know: who is blank, and who waits."""
        for number, held in sorted(self._blank.items()):
            if (stats := self._context.journal.stats.get(number)) is not None:
                tokens = stats.prompt_tokens, stats.output_tokens
                self._context.feed(
                    events.Stats(number, 0, 0, 0, *tokens)
                )  # what it has decoded for others is no demand
            self._context.feed(events.WorkerBlank(number, held))

    def release(self, arrive: Callable[[LiveRequest], None]) -> None:
        """Let what was kept arrive, in its order, unless its client is gone."""
        for live in self._kept:
            if not live.ended:
                arrive(live)


def _has_nothing(worker: Worker) -> bool:
    """Whether a worker's process has no model, whatever it was chosen for."""
    if worker.phase is Phase.PREPARING:
        return worker.pending is not None and worker.pending.skeleton is None
    return worker.phase is Phase.BLANK
