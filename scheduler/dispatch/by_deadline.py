"""Which waiting request goes to which active worker next: in deadline order, each model for itself."""

from __future__ import annotations

from scheduler.policies.policy import Policy
from scheduler.state.entities import Model, Request, Worker
from scheduler.state.phases import Phase
from scheduler.state.state import State


class ByDeadline:
    """Each model's requests go out as soon as one of its workers runs fewer than `max_running`.

    It is told of every change, which it has no use for but a subclass may, and asked until it has nothing more.
    """

    def __init__(self, state: State, policy: Policy, max_running: int) -> None:
        self._state = state
        self._policy = policy
        self._max_running = max_running

    def waits(self, request: Request) -> None:
        """A request has joined its model's queue."""

    def leaves(self, request: Request) -> None:
        """A request has left its model's queue, whatever for."""

    def opens(self, worker: Worker) -> None:
        """A worker now serves its model."""

    def closes(self, worker: Worker) -> None:
        """A worker takes no more requests of its model."""

    def starts(self, request: Request, worker: Worker, now: float) -> None:
        """A request is sent to a worker."""

    def answers(self, request: Request, now: float) -> None:
        """A request that was sent has its first token, or is over."""

    def frees(self, worker: Worker) -> None:
        """A worker may have room again."""

    def next(self, model: Model, now: float) -> tuple[Request, Worker] | None:
        """What to send after a change that concerns `model`; it is still in its model's queue."""
        if not model.queue:
            return None
        able = [worker for worker in self.serving(model) if len(worker.running) < self._max_running]
        if not able:
            return None
        request = self._state.requests[model.queue.first()]
        return request, able[0] if len(able) == 1 else self._policy.route(self._state, able, request, now)

    def serving(self, model: Model) -> list[Worker]:
        """The model's active workers, by number."""
        workers = (self._state.workers[number] for number in sorted(model.workers))
        return [worker for worker in workers if worker.phase is Phase.ACTIVE]
