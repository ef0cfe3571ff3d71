"""What operators have asked for and not got yet; each command is answered exactly once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from scheduler.actions import Answer
from scheduler.memory.feasibility import obstacle, obstacle_from
from scheduler.state.entities import Model, Worker
from scheduler.state.phases import Phase
from scheduler.state.state import State

EVICTABLE = frozenset({Phase.PREPARING, Phase.ACTIVATING, Phase.ACTIVE, Phase.DRAINING, Phase.PARKING})


@dataclass(frozen=True, slots=True)
class _Command:
    number: int
    model: str
    evict: bool
    worker: int | None = None


class Commands:
    def __init__(self, state: State) -> None:
        self._state = state
        self._pending: dict[int, _Command] = {}

    # commands come

    def activate(self, number: int, model: Model, worker: int | None) -> list[Answer]:
        """Note the wish in the state, for the policy to fulfil, or answer at once."""
        serving = next((n for n in sorted(model.workers) if self._state.workers[n].phase is Phase.ACTIVE), None)
        problem = obstacle(self._state, model)
        if worker is None and serving is not None:
            return [Answer(number, True, f"{model.name} is active on worker {serving} already")]
        if problem:
            return [Answer(number, False, problem)]
        if worker is not None:
            if worker in model.workers and self._state.workers[worker].phase is Phase.ACTIVE:
                return [Answer(number, True, f"{model.name} is active on worker {worker} already")]
            problem = self._reserve(model, worker)
            if problem:
                return [Answer(number, False, problem)]
        self._state.operator_wants.add(model.name)
        self._pending[number] = _Command(number, model.name, evict=False, worker=worker)
        return []

    def _reserve(self, model: Model, number: int) -> str:
        """Reserve a worker for a model; returns what stands against it."""
        if not 0 <= number < len(self._state.workers):
            return f"there is no worker {number}; they are 0 to {len(self._state.workers) - 1}"
        worker = self._state.workers[number]
        if worker.reserved_for not in (None, model.name):
            return f"worker {number} is being prepared for {worker.reserved_for}"
        if number in model.workers:
            return ""
        if self._state.keeps_pinned(worker):
            return f"worker {number} serves {worker.model}, which is pinned"
        if not worker.leads:
            return f"worker {number} acts with worker {worker.replica.lead.number} for {worker.model}"
        if model.tensor_parallel > 1 and (other := self._gathering(worker)):
            return f"workers are being gathered for {other}"
        if problem := obstacle_from(self._state, model, worker):
            return problem
        worker.reserved_for = model.name
        return ""

    def _gathering(self, but: Worker) -> str | None:
        """A model on several devices for which another worker is reserved: two at a time might wait for each other."""
        reserved = (worker.reserved_for for worker in self._state.workers if worker is not but)
        return next((name for name in reserved if name and self._state.models[name].tensor_parallel > 1), None)

    def evict(self, number: int, model: Model) -> list[Answer]:
        """Mark the model's workers, or answer at once why it cannot be evicted."""
        if model.pinned:
            return [Answer(number, False, f"{model.name} is pinned")]
        concerned = [
            worker
            for worker in self._state.workers
            if worker.model == model.name and worker.phase in EVICTABLE and worker.leads
        ]
        if not concerned:
            return [Answer(number, False, f"{model.name} is not active")]
        for worker in concerned:
            worker.evicting = True
        self._pending[number] = _Command(number, model.name, evict=True)
        return []

    # things happen

    def activated(self, worker: Worker, model: Model, seconds: float) -> list[Answer]:
        return self._serves(worker, model, f"{model.name} is active on worker {worker.number} after {seconds:.3f} s")

    def resumed(self, worker: Worker, model: Model) -> list[Answer]:
        return self._serves(worker, model, f"{model.name} stays active on worker {worker.number}")

    def _serves(self, worker: Worker, model: Model, text: str) -> list[Answer]:
        return self._answer(
            lambda c: not c.evict and c.model == model.name and c.worker in (None, worker.number), True, text
        )

    def parked(self, model: Model) -> list[Answer]:
        if any(worker.model == model.name and worker.evicting for worker in self._state.workers):
            return []
        return self._answer(lambda c: c.evict and c.model == model.name, True, f"{model.name} is evicted")

    def failed(self, model: Model, reason: str) -> list[Answer]:
        for worker in self._state.workers:
            if worker.reserved_for == model.name:
                worker.reserved_for = None
        text = f"{model.name} cannot be activated: {reason}"
        return self._answer(lambda c: not c.evict and c.model == model.name, False, text)

    def failed_on(self, worker: Worker, model: Model, reason: str) -> list[Answer]:
        """One worker failed: nobody tries again on it for a command that named it."""
        text = f"{model.name} cannot be activated on worker {worker.number}: {reason}"
        return self._answer(lambda c: not c.evict and c.model == model.name and c.worker == worker.number, False, text)

    def gone(self, model: Model, reason: str) -> list[Answer]:
        """A worker lost the model, which is what an eviction wanted."""
        if any(worker.model == model.name and worker.evicting for worker in self._state.workers):
            return []
        return self._answer(lambda c: c.evict and c.model == model.name, True, f"{model.name} is gone: {reason}")

    def forget(self, number: int) -> None:
        """Nobody waits for this answer any more."""
        command = self._pending.pop(number, None)
        if command is not None:
            self._drop_wish(command)

    def _answer(self, concerns: Callable[[_Command], bool], ok: bool, text: str) -> list[Answer]:
        done = [command for command in self._pending.values() if concerns(command)]
        for command in done:
            del self._pending[command.number]
            self._drop_wish(command)
        return [Answer(command.number, ok, text) for command in done]

    def _drop_wish(self, command: _Command) -> None:
        wishes = [c for c in self._pending.values() if not c.evict and c.model == command.model]
        if not wishes:
            self._state.operator_wants.discard(command.model)
        if command.worker is not None and not any(c.worker == command.worker for c in wishes):
            worker = self._state.workers[command.worker]
            if worker.reserved_for == command.model:
                worker.reserved_for = None
