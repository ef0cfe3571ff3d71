"""The way of a request: it arrives, waits, is sent to a worker, answers, and is over."""

from __future__ import annotations

from config.registry import Registry
from scheduler.actions import RefusalKind
from scheduler.dispatch.by_deadline import ByDeadline
from scheduler.events import Aborted, Arrived, Counted, Finished, FirstToken
from scheduler.flow.dispatching import Dispatching
from scheduler.flow.failures import BACKOFF_MAX, TRIES
from scheduler.flow.isolation import Isolations
from scheduler.flow.lifecycle import Lifecycle
from scheduler.flow.planning import Planning
from scheduler.flow.reaction import Reaction
from scheduler.flow.suspects import Suspects
from scheduler.forecast.observer import Observer
from scheduler.learned.averages import smoothed
from scheduler.memory.feasibility import obstacle
from scheduler.state.entities import Model, Request
from scheduler.state.state import State

SMOOTHING = 0.3
"""Weight of the newest service time in its moving average."""


class Requests:
    def __init__(
        self,
        state: State,
        reaction: Reaction,
        registry: Registry,
        *,
        observer: Observer,
        dispatcher: ByDeadline,
        dispatching: Dispatching,
        lifecycle: Lifecycle,
        suspects: Suspects,
        isolations: Isolations,
        planning: Planning,
    ) -> None:
        self._state = state
        self._reaction = reaction
        self._queue_limit = registry.gateway.limits.queue_per_model
        self._max_running = registry.pool.max_running
        self._refuses_late = registry.scheduler.late == "refuse"
        self._observer = observer
        self._dispatcher = dispatcher
        self._dispatching = dispatching
        self._lifecycle = lifecycle
        self._suspects = suspects
        self._isolations = isolations
        self._planning = planning

    def arrived(self, event: Arrived) -> None:
        now, model = self._reaction.now, self._state.models[event.model]
        request = Request(event.request, event.model, now, event.deadline, event.prompt_tokens, body=event.body)
        self._state.requests[request.id] = request
        model.last_used = now
        model.dismissed = False
        self._observer.arrived(model, now)
        if self._suspects.knows(request, now):
            self._reaction.actions += self._isolations.arrived(request, now)
            return
        refusal = self._refusal(model, request)
        if refusal is not None:
            self._dispatching.refuse(request, *refusal)
            return
        self._dispatching.wait(request)
        self._planning.serve(model)

    def _refusal(self, model: Model, request: Request) -> tuple[RefusalKind, str, float] | None:
        """Why a request cannot even wait: kind, reason, seconds until it is worth trying again."""
        now, waiting = self._reaction.now, len(model.queue)
        if waiting >= self._queue_limit:
            return "queue_full", f"{waiting} requests wait for {model.name} already", self._queue_seconds(model)
        if not model.workers and (problem := obstacle(self._state, model)):
            return "unavailable", problem, BACKOFF_MAX
        if not model.workers and model.failures >= TRIES and now < model.retry_at:
            return "unavailable", f"{model.name} cannot be activated: {model.failure}", model.retry_at - now
        if self._refuses_late:
            start = now + (0.0 if model.workers else model.activation_seconds)
            if start > request.deadline:
                return "late", f"{model.name} cannot answer within the deadline", max(1.0, start - request.deadline)
        return None

    def _queue_seconds(self, model: Model) -> float:
        """Time in which the present queue drains."""
        slots = max(1, len(model.workers)) * self._max_running
        return max(1.0, len(model.queue) * model.service_seconds / slots)

    def counted(self, event: Counted) -> None:
        request = self._state.requests.get(event.request)
        if request is not None:
            self._dispatching.count(request, event.prompt_tokens)

    def first_token(self, event: FirstToken) -> None:
        request = self._state.requests.get(event.request)
        if request is not None and request.isolated:
            request.first_token_at = self._reaction.now
        elif request is not None and request.first_token_at is None:
            self._dispatching.answers(request)

    def finished(self, event: Finished) -> None:
        request = self._state.requests.get(event.request)
        if request is not None and request.isolated:
            self._reaction.actions += self._isolations.finished(request, self._reaction.now)
            return
        if request is None or request.worker is None:
            return
        now, model = self._reaction.now, self._state.models[request.model]
        model.service_seconds = smoothed(model.service_seconds, now - request.dispatched, SMOOTHING)
        self._observer.finished(request, self._state.workers[request.worker], event.output_tokens, now)
        self._release(request)

    def aborted(self, event: Aborted) -> None:
        request = self._state.requests.get(event.request)
        if request is not None:
            self._release(request)

    def _release(self, request: Request) -> None:
        """The request is over: forget it, and use the place it leaves."""
        if request.isolated:
            self._reaction.actions += self._isolations.over(request, self._reaction.now)
            return
        del self._state.requests[request.id]
        model = self._state.models[request.model]
        if request.worker is None:
            self._dispatching.take(request)
            self._state.update_wanting(model, self._reaction.now)
            return
        worker = self._state.workers[request.worker]
        self._dispatching.leave(worker, request)
        worker.replica.last_used = model.last_used = self._reaction.now
        self._dispatcher.frees(worker)
        self._lifecycle.park_if_drained(worker, "drained")
        self._planning.serve(model)
