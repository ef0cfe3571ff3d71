"""Learns from events what `estimates` hold. It decides nothing."""

from __future__ import annotations

from scheduler.learned.averages import smoothed
from scheduler.learned.estimates import SMOOTHING
from scheduler.state.entities import Model, Request, Worker
from scheduler.state.state import State

UNDISTURBED = 0.05
"""Busy neighbours, in the mean over an answer, below which it counts as undisturbed."""


class Observer:
    def __init__(self, state: State) -> None:
        self._state = state

    def arrived(self, model: Model, now: float) -> None:
        model.demand.arrivals.add(1.0, now)
        model.demand.recurrence.arrived(now)

    def dispatched(self, request: Request, worker: Worker, now: float) -> None:
        """To be called when the request is among those that run."""
        model = self._state.models[request.model]
        demand = model.demand
        demand.tokens.add(request.prompt_tokens, now)
        demand.prompt_tokens = smoothed(demand.prompt_tokens, request.prompt_tokens, SMOOTHING)
        request.alone = len(worker.running) == 1 and not any(other.running for other in self._others(worker))
        self.load_changed(worker, now)

    def first_token(self, request: Request, now: float) -> None:
        if request.worker is not None:
            request.disturbed = self._disturbance(self._state.workers[request.worker], now)
        if request.alone:
            self._state.models[request.model].demand.prefill.see(request.prompt_tokens, now - request.dispatched)

    def finished(self, request: Request, worker: Worker, output_tokens: int, now: float) -> None:
        """To be called while the request still counts as running."""
        demand = self._state.models[request.model].demand
        demand.output_tokens = smoothed(demand.output_tokens, output_tokens, SMOOTHING)
        if request.first_token_at is None or output_tokens < 2 or now <= request.first_token_at:
            return
        seconds = now - request.first_token_at
        tpot = seconds / (output_tokens - 1)
        neighbours = (self._disturbance(worker, now) - request.disturbed) / seconds
        if neighbours < UNDISTURBED:
            demand.tpot = smoothed(demand.tpot, tpot, SMOOTHING)
        else:
            self._state.estimates.saw_neighbours(demand.tpot, tpot, neighbours)

    def decoded(self, worker: Worker, output_tokens: int, now: float) -> None:
        """A worker reports how many tokens it has decoded since it began."""
        if worker.model is not None and output_tokens > worker.decoded:
            self._state.models[worker.model].demand.tokens.add(output_tokens - worker.decoded, now)
        worker.decoded = output_tokens

    def activated(self, worker: Worker, model: Model, seconds: float) -> None:
        estimates = self._state.estimates
        (estimates.parked if worker.replica.revived else estimates.blank).see(model.shard_bytes, seconds)

    def load_changed(self, worker: Worker, now: float) -> None:
        """Requests have begun or ended on a worker."""
        busy = float(bool(worker.running))
        if busy != worker.busy.level:
            for member in worker.replica.workers:
                member.busy.set(busy, now)

    def _disturbance(self, worker: Worker, now: float) -> float:
        """Seconds that the others of the device have been busy so far, all together."""
        return sum(other.busy.area(now) for other in self._others(worker))

    def _others(self, worker: Worker) -> list[Worker]:
        device = self._state.device_of(worker)
        return [other for other in self._state.on(device) if other is not worker]
