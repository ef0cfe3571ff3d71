"""Requests in their queues and on their workers: they wait, are sent, leave, or are refused."""

from __future__ import annotations

from scheduler.actions import Dispatch, RefusalKind, Refuse
from scheduler.dispatch.by_deadline import ByDeadline
from scheduler.flow.reaction import Reaction
from scheduler.forecast.observer import Observer
from scheduler.state.entities import Model, Request, Worker
from scheduler.state.phases import Phase
from scheduler.state.state import State

TOO_LATE = "its deadline passed while it waited"


class Dispatching:
    """`refuses_late`: a request whose deadline has passed while it waited is not served any more."""

    def __init__(
        self, state: State, reaction: Reaction, dispatcher: ByDeadline, observer: Observer, *, refuses_late: bool
    ) -> None:
        self._state = state
        self._reaction = reaction
        self._dispatcher = dispatcher
        self._observer = observer
        self._refuses_late = refuses_late

    # in the queue

    def wait(self, request: Request) -> None:
        self._state.models[request.model].queue.push(request.id, request.deadline)
        self._dispatcher.waits(request)

    def take(self, request: Request) -> None:
        """Take a request out of its queue, for whatever reason."""
        self._state.models[request.model].queue.remove(request.id)
        self._dispatcher.leaves(request)

    def refuse(self, request: Request, kind: RefusalKind, reason: str, retry_after: float) -> None:
        """Refuse a request that is in no queue."""
        del self._state.requests[request.id]
        self._reaction.actions.append(Refuse(request.id, kind, reason, retry_after))

    def refuse_waiting(self, model: Model, reason: str, retry_after: float) -> None:
        """Refuse all that wait for a model."""
        while model.queue:
            request = self._state.requests[model.queue.first()]
            self.take(request)
            self.refuse(request, "unavailable", reason, retry_after)

    def refuse_late(self) -> None:
        """Time has passed: where that is wanted, refuse what cannot be on time any more."""
        if not self._refuses_late:
            return
        for model in self._state.models.values():
            while (deadline := model.queue.first_deadline()) is not None and deadline < self._reaction.now:
                request = self._state.requests[model.queue.first()]
                self.take(request)
                self.refuse(request, "late", TOO_LATE, 1.0)
            self._state.update_wanting(model, self._reaction.now)

    # on a worker

    def dispatch(self, model: Model) -> None:
        """Send what can run, after a change that concerns `model`."""
        now = self._reaction.now
        while found := self._dispatcher.next(model, now):
            request, worker = found
            self.take(request)
            if self._refuses_late and now > request.deadline:
                self.refuse(request, "late", TOO_LATE, 1.0)
            else:
                self._send(request, worker)

    def _send(self, request: Request, worker: Worker) -> None:
        now = self._reaction.now
        request.worker = worker.number
        request.dispatched = now
        request.kv_bytes = self._state.models[request.model].kv_need(request)
        worker.replica.begins(request, now)
        self._dispatcher.starts(request, worker, now)
        self._observer.dispatched(request, worker, now)
        self._reaction.actions.append(Dispatch(request.id, worker.number))

    def count(self, request: Request, prompt_tokens: int) -> None:
        """How long its prompt is in fact; where it runs, that much KV cache is promised."""
        request.prompt_tokens = prompt_tokens
        if request.worker is None:
            return
        replica = self._state.workers[request.worker].replica
        replica.expects(request, self._state.models[request.model].kv_need(request))

    def answers(self, request: Request) -> None:
        """It has its first token."""
        now = self._reaction.now
        request.first_token_at = now
        self._observer.first_token(request, now)
        self._dispatcher.answers(request, now)
        self.dispatch(self._state.models[request.model])

    def leave(self, worker: Worker, request: Request) -> None:
        """It runs there no more, whatever became of it."""
        now = self._reaction.now
        worker.replica.ends(request)
        if request.first_token_at is None:
            self._dispatcher.answers(request, now)
        self._observer.load_changed(worker, now)

    def has_room(self, worker: Worker) -> None:
        """Its KV cache may have grown, or shrunk."""
        worker = worker.replica.lead
        self._dispatcher.frees(worker)
        if worker.phase is Phase.ACTIVE:
            self.dispatch(self._state.model_of(worker))
