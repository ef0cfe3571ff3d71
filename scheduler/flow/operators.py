"""What operators want done, and that it is done at once where it can be."""

from __future__ import annotations

from scheduler.actions import Abort, Drain, Park
from scheduler.events import OperatorActivate, OperatorEvict, OperatorGone
from scheduler.flow.dispatching import Dispatching
from scheduler.flow.lifecycle import Lifecycle
from scheduler.flow.planning import Planning
from scheduler.flow.reaction import Reaction
from scheduler.operator import Commands
from scheduler.state.entities import Worker
from scheduler.state.phases import SERVING, Phase
from scheduler.state.state import State

EVICTED = "the operator evicts it"
"""The reason that an eviction is given."""


class Operators:
    def __init__(
        self,
        state: State,
        reaction: Reaction,
        *,
        commands: Commands,
        dispatching: Dispatching,
        lifecycle: Lifecycle,
        planning: Planning,
    ) -> None:
        self._state = state
        self._reaction = reaction
        self._commands = commands
        self._dispatching = dispatching
        self._lifecycle = lifecycle
        self._planning = planning

    def activate(self, event: OperatorActivate) -> None:
        model = self._state.models[event.model]
        self._reaction.actions += self._commands.activate(event.command, model, event.worker)
        model.retry_at = 0.0
        model.failures = 0
        model.dismissed = False
        self._state.update_wanting(model, self._reaction.now)
        self._planning.plan()

    def evict(self, event: OperatorEvict) -> None:
        model = self._state.models[event.model]
        self._reaction.actions += self._commands.evict(event.command, model)
        model.dismissed = not model.pinned
        for worker in self._state.workers:
            if worker.evicting and worker.model == model.name and worker.phase in SERVING:
                self._evict(worker, now=event.now)
        self._planning.plan()

    def _evict(self, worker: Worker, *, now: bool) -> None:
        if now:
            for number in sorted(worker.running):
                self._dispatching.leave(worker, self._state.requests.pop(number))
                self._reaction.actions.append(Abort(number, EVICTED))
        if not worker.running:
            self._lifecycle.decide(Park(worker.number, EVICTED))
        elif worker.phase is Phase.ACTIVE:
            self._lifecycle.decide(Drain(worker.number, EVICTED))

    def gone(self, event: OperatorGone) -> None:
        self._commands.forget(event.command)
        for model in self._state.models.values():
            self._state.update_wanting(model, self._reaction.now)
