"""Workers for isolated requests: which ones there are, and where another one, or memory for another model, is found."""

from __future__ import annotations

from scheduler.flow.lifecycle import Lifecycle
from scheduler.memory import budget
from scheduler.state.entities import Device, Isolation, Model, Request, Worker
from scheduler.state.phases import FREE, Phase
from scheduler.state.state import State

_COST = {Phase.BLANK: 0, Phase.PARKED: 1, Phase.ACTIVE: 2}
"""What is lost with a worker: the least first."""


class IsolatedWorkers:
    def __init__(self, state: State, lifecycle: Lifecycle) -> None:
        self._state = state
        self._lifecycle = lifecycle

    def of(self, request: Request) -> Isolation:
        """Where an isolated request is that does not wait for a worker."""
        return next(
            isolation
            for isolation in self._state.isolations.values()
            if request.id in isolation.running or request.id in isolation.waiting
        )

    def on(self, device: Device) -> list[Isolation]:
        here = (worker.number for worker in self._state.on(device))
        return [self._state.isolations[number] for number in here if number in self._state.isolations]

    def more_on(self, device: Device) -> int:
        """Workers that may still be isolated there: half of them are at most, so that the pool goes on."""
        return max(1, len(self._state.on(device)) // 2) - len(self.on(device))

    def anywhere(self, model: Model, now: float) -> Isolation | None:
        """A worker that is isolated already, or one that nobody needs at the moment, on any device."""
        for device in self._state.devices.values():
            spare = [] if self.more_on(device) < 1 else [worker for worker in self._state.on(device) if _spare(worker)]
            spare.sort(key=lambda worker: (_COST[worker.phase], -worker.last_used, worker.number), reverse=True)
            if (isolation := self.on_device(model, device, spare, now)) is not None:
                return isolation
        return None

    def on_device(self, model: Model, device: Device, spare: list[Worker], now: float) -> Isolation | None:
        """The one that has the model already, else a new one on the last of the `spare` workers, which is then taken
        off them, else the one with the least to do; None if there is no memory.
        """
        here = self.on(device)
        own = [isolation for isolation in here if model.name in self._models(isolation)]
        if not own and spare and self._reserve(device, spare[-1], model):
            return self._open(spare.pop(), now)
        for isolation in own or sorted(here, key=lambda it: len(it.waiting) + len(it.running)):
            if self._reserve(device, self._state.workers[isolation.worker], model):
                return isolation
        return None

    def close(self, isolation: Isolation) -> None:
        """The worker becomes one of the pool's again, with another process."""
        worker = self._state.workers[isolation.worker]
        del self._state.isolations[worker.number]
        self._state.device_of(worker).ledger.release(worker.number, worker.held_blank or 0)
        worker.kv_mapped, worker.held_first = 0, None
        self._lifecycle.enter(worker.replica, Phase.STARTING)

    def _open(self, worker: Worker, now: float) -> Isolation:
        if worker.phase is not Phase.STARTING:
            self._lifecycle.vacate(worker)
        isolation = self._state.isolations[worker.number] = Isolation(worker.number, now, [])
        self._lifecycle.enter(worker.replica, Phase.ISOLATED)
        return isolation

    def _models(self, isolation: Isolation) -> set[str]:
        return {self._state.requests[number].model for number in (*isolation.waiting, *isolation.running)}

    def _reserve(self, device: Device, worker: Worker, model: Model) -> bool:
        """Memory for the model, whether it comes after others or not: there is never more than one at a time."""
        if model.tensor_parallel > 1:
            return False
        account = device.ledger[worker.number]
        held = max(account.held, budget.held_when_active(device, model) if device.accounted else 0)
        weights = max(account.weights, model.shard_bytes)
        limit = max(account.limit, device.kv_minimum) if device.accounted else 0
        if not device.ledger.fits(held + weights + limit - account.total):
            return False
        device.ledger.reserve(worker.number, held=held, weights=weights, limit=limit)
        return True


def _spare(worker: Worker) -> bool:
    """It is by itself, and does nothing for anybody."""
    return not worker.grouped and (worker.phase in FREE or worker.idle) and worker.reserved_for is None
