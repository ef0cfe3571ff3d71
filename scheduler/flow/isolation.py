"""Requests that may have ended a worker, or made a GPU fail, and the workers that serve them where they harm nobody.

Nothing tells which request it was. So those that ran there and had no byte yet are served by workers of that device
that are no clients of MPS. These are apart from the pool: no policy sees them, and nobody else's requests get there.
Where a GPU has failed, requests of a model run together, and if their worker dies, each alone; where a worker has
ended, each runs alone at once. One that dies under a single request has it refused. A worker without suspects goes
back to the pool.

What such a request asks is known for MEMORY seconds. The same again is a suspect as well, and waits for a worker that
can be isolated for it; if it was refused, so is what comes again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from scheduler.actions import Abort, Activate, AnyAction, Dispatch, Park, Recycle, RefusalKind, Refuse
from scheduler.flow.isolated_workers import IsolatedWorkers
from scheduler.flow.lifecycle import Lifecycle
from scheduler.flow.suspects import Suspects
from scheduler.state.entities import Charge, Isolation, Model, Request, Worker
from scheduler.state.phases import Phase
from scheduler.state.state import State

TRIES = 2
"""Starts or activations in a row that an isolated worker may die of before its requests are refused."""
REASON = "its requests may have ended a worker"
REFUSED: dict[Charge, str] = {
    "fault": "The GPU failed under this request, and so did a worker that served nothing else",
    "crash": "A worker ended under this request, and so did one that served nothing else",
}
"""What one is told that has ended the worker on which it was alone, by what it was charged with."""


class Isolations:
    """Each method returns what is to be done, one by one."""

    def __init__(self, state: State, suspects: Suspects, lifecycle: Lifecycle, *, max_running: int) -> None:
        self._state = state
        self._max_running = max_running
        self._suspects = suspects
        self._workers = IsolatedWorkers(state, lifecycle)

    # requests come

    def arrived(self, request: Request, now: float) -> list[AnyAction]:
        """A request comes that `Suspects` knows."""
        request.isolated = True
        self._state.apart.append(request.id)
        if self._suspects.is_guilty(request):
            return [self._refuse(request, request.charge, REFUSED[request.charge], 0.0)]
        if not self._may_be_isolated(self._state.models[request.model]):
            return [self._refuse(request, "unavailable", "It may have ended a worker, and cannot run apart now", 10.0)]
        return self.find_places(now)

    def find_places(self, now: float) -> list[AnyAction]:
        """For those that wait apart: a worker that is isolated already, or one that nobody needs at the moment."""
        actions: list[AnyAction] = []
        for number in list(self._state.apart):
            request, before = self._state.requests[number], set(self._state.isolations)
            if (isolation := self._workers.anywhere(self._state.models[request.model], now)) is None:
                continue
            self._state.apart.remove(number)
            isolation.waiting.append(number)
            isolation.alone.add(number)
            if isolation.worker not in before:
                actions.append(Recycle(isolation.worker, REASON, isolated=True))
            else:
                actions += self._go_on(isolation, now)
        return actions

    def _may_be_isolated(self, model: Model) -> bool:
        """It is found nowhere but in host memory, and on one device."""
        return model.tensor_parallel == 1 and (model.staged or not self._state.host.required)

    def take_in(
        self, lost: Sequence[Worker], suspects: Iterable[Request], now: float
    ) -> tuple[list[AnyAction], list[Request]]:
        """Isolate requests that run nowhere any more, on workers that their device has `lost`, which are starting: half
        of its workers at most, so that the pool goes on. Also returns those for whose models there is no memory now.
        """
        device = self._state.device_of(lost[0])
        known = {isolation.worker for isolation in self._workers.on(device)}
        more = self._workers.more_on(device)
        places = list(lost[-more:]) if more > 0 else []
        left: list[Request] = []
        for model, requests in self._by_model(suspects):
            isolation = self._workers.on_device(model, device, places, now)
            if isolation is None:
                left += requests
                continue
            isolation.waiting += [request.id for request in requests]
            for request in requests:
                request.isolated = True
                if request.charge == "crash":
                    isolation.alone.add(request.id)
        actions: list[AnyAction] = []
        for isolation in self._workers.on(device):
            if isolation.worker in known:
                actions += self._go_on(isolation, now)
            else:
                actions.append(Recycle(isolation.worker, REASON, isolated=True))
        return actions, left

    # what its worker says

    def blank(self, worker: Worker, held: int, now: float) -> Iterator[AnyAction]:
        isolation = self._at(worker)
        worker.held_blank = worker.held_first = held
        isolation.enter(Phase.BLANK, now)
        yield from self._go_on(isolation, now)

    def activated(self, worker: Worker, now: float) -> Iterator[AnyAction]:
        isolation = self._at(worker)
        isolation.deaths = 0
        isolation.enter(Phase.ACTIVE, now)
        yield from self._go_on(isolation, now)

    def failed(self, worker: Worker, reason: str, now: float) -> Iterator[AnyAction]:
        """It could not activate its model, and is blank."""
        isolation = self._at(worker)
        yield from self._refuse_model(isolation, isolation.model, f"{isolation.model} cannot be activated: {reason}")
        isolation.enter(Phase.BLANK, now)
        yield from self._go_on(isolation, now)

    def parked(self, worker: Worker, now: float) -> Iterator[AnyAction]:
        isolation = self._at(worker)
        isolation.enter(Phase.PARKED, now)
        yield from self._go_on(isolation, now)

    def died(self, worker: Worker, reason: str, now: float) -> Iterator[AnyAction]:
        """It is being replaced by another one that is isolated too."""
        isolation = self._at(worker)
        isolation.deaths = 0 if isolation.running else isolation.deaths + 1
        yield from self._judge(isolation, reason, now)
        isolation.enter(Phase.STARTING, now)
        if not isolation.waiting:
            yield from self._end(isolation)
        elif isolation.deaths >= TRIES:
            yield from self._refuse_model(isolation, None, f"a worker for suspected requests cannot be had: {reason}")
            yield from self._end(isolation)

    # what becomes of its requests

    def over(self, request: Request, now: float) -> Iterator[AnyAction]:
        """Its client is gone."""
        if request.id in self._state.apart:
            self._forget(request)
            return
        isolation = self._workers.of(request)
        self._forget(request)
        yield from self._go_on(isolation, now)

    def finished(self, request: Request, now: float) -> Iterator[AnyAction]:
        """It has its answer: it was not the one."""
        self._suspects.acquit(request)
        yield from self.over(request, now)

    def _judge(self, isolation: Isolation, reason: str, now: float) -> Iterator[AnyAction]:
        """The worker has died under its requests."""
        alone = len(isolation.running) == 1
        for number in sorted(isolation.running):
            request = self._state.requests[number]
            if alone:
                yield from self._convict(request, reason, now)
            elif request.first_token_at is not None:
                self._forget(request)
                yield Abort(number, f"the worker died: {reason}")
            else:
                isolation.alone.add(number)
                isolation.waiting.append(number)
        isolation.running.clear()

    def _convict(self, request: Request, reason: str, now: float) -> Iterator[AnyAction]:
        """The worker has died on which it was alone. Whoever asks the same is told so, at once."""
        text = REFUSED[request.charge]
        self._suspects.convict(request, now)
        if request.first_token_at is None:
            yield self._refuse(request, request.charge, text, 0.0)
        else:
            self._forget(request)
            yield Abort(request.id, f"the worker died: {reason}")
        for other in self._all_waiting():
            if request.body and other.body == request.body:
                yield self._refuse(other, request.charge, text, 0.0)

    def _all_waiting(self) -> list[Request]:
        """Suspects that wait, for a worker or on one."""
        waiting = [number for isolation in self._state.isolations.values() for number in isolation.waiting]
        return [self._state.requests[number] for number in (*self._state.apart, *waiting)]

    def _refuse_model(self, isolation: Isolation, model: str | None, reason: str) -> Iterator[AnyAction]:
        """What waits for `model`, or whatever waits."""
        for request in self._waiting(isolation, model):
            yield self._refuse(request, "unavailable", reason, 1.0)

    def _refuse(self, request: Request, kind: RefusalKind, reason: str, retry_after: float) -> Refuse:
        self._forget(request)
        return Refuse(request.id, kind, reason, retry_after)

    def _forget(self, request: Request) -> None:
        if request.id in self._state.apart:
            self._state.apart.remove(request.id)
        else:
            isolation = self._workers.of(request)
            isolation.running.discard(request.id)
            isolation.alone.discard(request.id)
            if request.id in isolation.waiting:
                isolation.waiting.remove(request.id)
        del self._state.requests[request.id]

    # what is next

    def _go_on(self, isolation: Isolation, now: float) -> Iterator[AnyAction]:
        if isolation.phase is Phase.ACTIVE:
            yield from self._dispatch(isolation, now)
        if isolation.running or isolation.phase not in (Phase.BLANK, Phase.PARKED, Phase.ACTIVE):
            return
        if not isolation.waiting:
            yield from self._end(isolation)
        elif isolation.phase is Phase.ACTIVE:
            isolation.enter(Phase.PARKING, now)
            yield Park(isolation.worker, "suspected requests of another model wait")
        else:
            yield self._activate(isolation, now)

    def _dispatch(self, isolation: Isolation, now: float) -> Iterator[Dispatch]:
        for request in self._waiting(isolation, isolation.model):
            if len(isolation.running) >= self._max_running or isolation.running & isolation.alone:
                return
            if isolation.running and request.id in isolation.alone:
                continue
            isolation.waiting.remove(request.id)
            isolation.running.add(request.id)
            request.dispatched = now
            yield Dispatch(request.id, isolation.worker)

    def _activate(self, isolation: Isolation, now: float) -> Activate:
        model = self._state.requests[isolation.waiting[0]].model
        account = self._state.account(self._state.workers[isolation.worker])
        isolation.model = model
        isolation.enter(Phase.ACTIVATING, now)
        return Activate(isolation.worker, model, REASON, account.limit, account.revision)

    def _end(self, isolation: Isolation) -> Iterator[AnyAction]:
        """The worker becomes one of the pool's again."""
        self._workers.close(isolation)
        yield Recycle(isolation.worker, "no suspected requests are left")

    # helpers

    def _at(self, worker: Worker) -> Isolation:
        return self._state.isolations[worker.number]

    def _waiting(self, isolation: Isolation, model: str | None) -> list[Request]:
        """Of a model, or all, in their order."""
        requests = [self._state.requests[number] for number in isolation.waiting]
        return [request for request in requests if model is None or request.model == model]

    def _by_model(self, suspects: Iterable[Request]) -> Iterator[tuple[Model, list[Request]]]:
        """The earliest deadlines first."""
        by_name: dict[str, list[Request]] = {}
        for request in sorted(suspects, key=lambda request: request.deadline):
            by_name.setdefault(request.model, []).append(request)
        for name, requests in by_name.items():
            yield self._state.models[name], requests
